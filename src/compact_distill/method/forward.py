"""The one pass: difficulty, belief, consensus states and training loss from a single forward of the student.

`attach(student)` teaches a model to read a `Layout`: its forward, called with `compact_layout=...`, reads the row and
returns a `Reading`. Called as usual it does what it always did. The work happens inside the model's own forward, so
wrappers around it (DistributedDataParallel, FSDP, autocast, peft) see an ordinary call.

Shape letters: T tokens of a row, N of them that the text names, R branches, A gold-answer tokens, P passages or probe
points, V vocabulary, H query heads, G key heads, D width of a state or of a head.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from compact_distill.errors import StudentError
from compact_distill.method.kernels.attention import AttentionPlan
from compact_distill.method.kernels.choose import IMPLEMENTATION, register
from compact_distill.method.kernels.head import read_head
from compact_distill.method.kernels.layers import patch_layers
from compact_distill.method.outputs import Reading
from compact_distill.method.packing import BranchRows, Layout, SecondRow, lay_out_second_row, step_windows
from compact_distill.students.load import adapter_problems, architecture_problems, innermost


@dataclass(frozen=True)
class PassOptions:
    """What a pass shall yield besides losses and the lens.

    Attributes:
        gold: next-token distributions at the gold answer after each reasoning (consistency term, probe).
        max_probes: read the belief at up to this many probe points; None: the lens is read instead.
        pool: "last" or "attention": which state stands for a path in the consensus.
        ranks: the rank of each completion token.
        window: also read each step of the reasoning after the prompt and so many steps before it alone.
    """

    gold: bool = True
    max_probes: int | None = None
    pool: str = "last"
    ranks: bool = False
    window: int | None = None

    @property
    def second_row(self) -> bool:
        """Whether something is read on the keys and values of the first row."""
        return self.max_probes is not None or self.window is not None

    @property
    def with_gold(self) -> bool:
        """The last probe point is the gold answer after the whole reasoning, so probes need it too."""
        return self.gold or self.max_probes is not None


def attach(model: nn.Module) -> None:
    """Teach `model` to read layouts. Idempotent; once more after adapters were added, so that they are lean too.

    Raises:
        StudentError: the architecture or the kind of adapter is not supported.
    """
    core = innermost(model)
    wrong = architecture_problems(core.config) + adapter_problems(model)
    if wrong:
        raise StudentError(wrong)
    patch_layers(core.model)
    _teach(core.get_output_embeddings(), _head_forward)
    if _teach(core, _model_forward):
        register()
        core.config._attn_implementation = IMPLEMENTATION


def _teach(module: Any, forward: Callable[..., Any]) -> bool:
    """Give a module a forward that falls back to its own; False where it has it already.

    Its own is kept on the module itself, so that a copy of the module (peft makes some) falls back to the copy's.
    """
    if "_compact_ordinary" in vars(module):
        return False
    module._compact_ordinary = module.forward
    module.forward = types.MethodType(forward, module)
    return True


def _model_forward(
    self: Any, *args: Any, compact_layout: Layout | None = None, compact_options: Any = None, **kwargs: Any
) -> Any:
    if compact_layout is None:
        return self._compact_ordinary(*args, **kwargs)
    return _read(self, compact_layout, compact_options or PassOptions())


def _head_forward(self: Any, hidden: Tensor, compact_rows: tuple[Tensor, Tensor, Tensor | None] | None = None) -> Any:
    """Read what a pass needs in a call of the head, so that who shards it (FSDP2) gathers it first."""
    if compact_rows is None:
        return self._compact_ordinary(hidden)
    return read_head(hidden, self.weight, getattr(self, "bias", None), *compact_rows)


def read(model: nn.Module, layout: Layout, options: PassOptions) -> Reading:
    """Read a layout with a model that `attach` has taught; calls the model's own forward, whatever wraps it."""
    return model(compact_layout=layout, compact_options=options)


@torch.no_grad()
def read_labels(model: nn.Module, layout: Layout, rows: Sequence[int], labels: Sequence[int]) -> Tensor:
    """Log-probability of a token after each of some rows of a layout, nats, [N]; for who reads without training.

    Args:
        model: one that `attach` has taught.
        layout: the row of tokens; its `problems` and `branches` are not looked at.
        rows: indices of tokens in the row.
        labels: the token that each of them is to predict.
    """
    core: Any = innermost(model)
    hidden_TD = _hidden_states(core, layout, AttentionPlan.of(layout))
    labels_N = torch.tensor(labels, device=hidden_TD.device)
    none_N1 = torch.full_like(labels_N, -1)[:, None]
    chosen_ND = hidden_TD.index_select(0, torch.tensor(rows, device=hidden_TD.device))
    logprob_N, _, _ = core.get_output_embeddings()(chosen_ND, compact_rows=(labels_N, none_N1))
    return cast(Tensor, logprob_N)


def _read(core: Any, layout: Layout, options: PassOptions) -> Reading:
    plan = AttentionPlan.of(layout, remember=options.second_row)
    hidden_TD = _hidden_states(core, layout, plan)
    plan.remember = False  # gradient checkpointing runs the layers again; once is enough
    device = hidden_TD.device
    head = core.get_output_embeddings()
    rows = [row for branch in layout.branches for row in branch.labelled]
    if options.with_gold:
        rows += [row for branch in layout.branches for row in branch.gold]
    labels = torch.tensor([token for branch in layout.branches for token in branch.branch.completion], device=device)
    rank_N = torch.empty_like(labels) if options.ranks else None
    logprob_N, belief_N, gold_GV = head(
        hidden_TD.index_select(0, torch.tensor(rows, device=device)),
        compact_rows=(labels, _gold_by_row(layout, device), rank_N),
    )
    gold = gold_GV.split([len(branch.gold) for branch in layout.branches]) if options.with_gold else ()
    probe: tuple[Tensor, ...] = ()
    local_R: Tensor | None = None
    if options.second_row:
        second, value_P = _read_second_row(core, layout, plan, options, logprob_N)
        probe = _beliefs(layout, second, value_P, gold) if options.max_probes is not None else ()
        local_R = _local(layout, second, value_P, logprob_N, options.window) if options.window is not None else None
    query_RHD, key_RGD = _project(core, hidden_TD.detach(), layout.branches, options.pool)
    return Reading(layout.branches, logprob_N, belief_N, query_RHD, key_RGD, gold, probe, rank_N, local_R)


def _hidden_states(core: Any, layout: Layout, plan: AttentionPlan) -> Tensor:
    """Final hidden states of the row, [T, D]."""
    device = core.get_input_embeddings().weight.device
    outputs = core.model(
        input_ids=layout.input_ids(device),
        position_ids=layout.position_ids(device),
        # A mask that is four-dimensional already is passed on as it is, and our attention goes by the plan.
        attention_mask=torch.empty(1, 1, 0, 0, device=device),
        use_cache=False,
        compact_plan=plan,
    )
    return outputs.last_hidden_state[0]


def _gold_by_row(layout: Layout, device: torch.device) -> Tensor:
    """Gold-answer tokens of each labelled row's problem, [N, A], padded with -1."""
    longest = max(len(layout.problems[branch.problem].gold_tokens) for branch in layout.branches)
    table = []
    for branch in layout.branches:
        tokens = layout.problems[branch.problem].gold_tokens
        table.append([*tokens, *[-1] * (longest - len(tokens))])
    repeats = torch.tensor([len(branch.branch) for branch in layout.branches], device=device)
    return torch.repeat_interleave(torch.tensor(table, device=device), repeats, dim=0)


@torch.no_grad()
def _read_second_row(
    core: Any, layout: Layout, plan: AttentionPlan, options: PassOptions, like: Tensor
) -> tuple[SecondRow, Tensor]:
    """Mean log-probability of each passage of the second row, [P]: a forward on the keys and values of the first."""
    second = lay_out_second_row(layout, options.max_probes, options.window)
    value_P = torch.empty(0, device=like.device, dtype=like.dtype)
    if second.passages:
        follow = AttentionPlan(second.row.segments, first=len(layout.segments), memory=plan.memory)
        hidden_TD = _hidden_states(core, second.row, follow)
        head = core.get_output_embeddings()
        rows = torch.tensor([row for passage in second.passages for row in passage.rows], device=hidden_TD.device)
        labels = torch.tensor([t for passage in second.passages for t in passage.labels], device=hidden_TD.device)
        none = torch.full((len(labels), 1), -1, device=hidden_TD.device)
        logprob_N, _, _ = head(hidden_TD.index_select(0, rows), compact_rows=(labels, none, None))
        counts = [len(passage.labels) for passage in second.passages]
        value_P = torch.stack([part.mean() for part in logprob_N.split(counts)])
    plan.memory.clear()
    return second, value_P


@torch.no_grad()
def _beliefs(layout: Layout, second: SecondRow, value_P: Tensor, gold: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Belief in the gold answer at each branch's probe points; the last one was read with the branch."""
    beliefs = []
    for branch, logprob_AV, places in zip(layout.branches, gold, second.probes, strict=True):
        tokens = torch.tensor(layout.problems[branch.problem].gold_tokens, device=logprob_AV.device)
        end = logprob_AV.gather(1, tokens[:, None]).mean()[None]
        beliefs.append(torch.cat([value_P[places], end]) if branch.branch.reasoning else end)
    return tuple(beliefs)


@torch.no_grad()
def _local(layout: Layout, second: SecondRow, value_P: Tensor, logprob_N: Tensor, window: int) -> Tensor:
    """Mean over each branch's steps of their mean log-probability in their window, [R]; 0 without reasoning.

    Steps whose window reaches back to the prompt were read with the branch.
    """
    means = []
    own = logprob_N.split([len(branch.branch) for branch in layout.branches])
    for branch, logprob_T, places in zip(layout.branches, own, second.steps, strict=True):
        near = [logprob_T[a:b].mean() for first, a, b in step_windows(branch.branch, window) if first == 0]
        values = torch.stack([*near, *value_P[places]]) if near else logprob_T.new_zeros(1)
        means.append(values.mean())
    return torch.stack(means)


@torch.no_grad()
def _project(core: Any, hidden_TD: Tensor, branches: Sequence[BranchRows], pool: str) -> tuple[Tensor, Tensor]:
    """Query [R, H, D] and key [R, G, D] projections of the state that stands for each branch; no rotary embedding."""
    layer = core.model.layers[-1]
    attention = layer.self_attn
    with torch.autocast(hidden_TD.device.type, enabled=False), _dropout_off(attention), _unsharded(layer):
        last = hidden_TD[torch.tensor([branch.last for branch in branches], device=hidden_TD.device)]
        if pool == "last":
            return _heads(attention, last, "q"), _heads(attention, last, "k")
        pooled = []
        for state, branch in zip(last, branches, strict=True):
            states_TD = hidden_TD[branch.reasoning.start : branch.reasoning.stop]
            pooled.append(_attend(attention, state, states_TD) if len(states_TD) else state)
        return _heads(attention, torch.stack(pooled), "q"), _heads(attention, torch.stack(pooled), "k")


def _attend(attention: Any, state_D: Tensor, states_TD: Tensor) -> Tensor:
    """Mean of the reasoning's states, weighted by the last token's attention to them (projections without rotary)."""
    query_HD = _heads(attention, state_D[None], "q")[0]
    key_THD = _heads(attention, states_TD, "k")
    key_THD = key_THD.repeat_interleave(query_HD.shape[0] // key_THD.shape[1], dim=1)
    logits_T = torch.einsum("hd,thd->t", query_HD, key_THD) / query_HD.numel() ** 0.5
    return torch.softmax(logits_T, dim=0).to(states_TD.dtype) @ states_TD


def _heads(attention: Any, states_TD: Tensor, which: str) -> Tensor:
    """Project states through the layer's query or key projection, with bias and norm where it has them: [T, H, D]."""
    projection = getattr(attention, f"{which}_proj")
    states_TD = states_TD.to(next(projection.parameters()).dtype)
    heads = projection(states_TD)
    norm: Any = getattr(attention, f"{which}_norm", None)
    all_heads = norm is not None and norm.weight.numel() == heads.shape[-1]  # OLMo: one norm over all of them
    heads = (norm(heads) if all_heads else heads).view(len(states_TD), -1, attention.head_dim)
    heads = heads if norm is None or all_heads else norm(heads)
    return heads if heads.dtype == torch.float64 else heads.float()


@contextlib.contextmanager
def _unsharded(layer: Any) -> Iterator[None]:
    """Gather a layer's weights while it is used outside its own forward (FSDP2 has sharded them again by then)."""
    if not hasattr(layer, "unshard"):
        yield
        return
    layer.unshard()
    yield
    layer.reshard()


@contextlib.contextmanager
def _dropout_off(module: nn.Module) -> Iterator[None]:
    """Switch dropout off in a module for a moment."""
    dropouts = [m for m in module.modules() if isinstance(m, nn.Dropout) and m.training]
    for dropout in dropouts:
        dropout.training = False
    yield
    for dropout in dropouts:
        dropout.training = True
