"""Student Optimizer: transformers' Trainer with COMPACT's loss.

`CompactTrainer(model=..., args=CompactConfig(...), train_dataset=..., processing_class=tokenizer, peft_config=...)`,
as TRL's trainers. Accumulation, mixed precision, checkpointing, LoRA, reporting, saving and resuming are transformers'
own. What is ours: the batch is problems, the loss comes from one pass of the student over them, and its mean over the
problems of an optimizer step is exact however that step is divided.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType, gather_object
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerControl, set_seed

from compact_distill.errors import ConfigError, RunError
from compact_distill.method.encode import EncodedProblem, Encoder
from compact_distill.method.forward import attach
from compact_distill.method.loss import aggregate
from compact_distill.method.packing import lay_out
from compact_distill.method.passes import Job, LengthGroupedSampler, ProblemDataset, plan_jobs, read_job
from compact_distill.method.score import score_row
from compact_distill.method.scores import Scorer
from compact_distill.records import Instance, ScoreRow
from compact_distill.runs.folder import ScoreTrace
from compact_distill.training.arguments import CompactConfig
from compact_distill.training.callbacks import (
    STATE,
    TrainingMetrics,
    is_lost_rank,
    lost_rank,
    newest_complete,
    no_rotation,
    require_complete,
    rotate,
    seal,
    tidy,
    trace_damage,
    trace_so_far,
)

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def _collate(problems: list[EncodedProblem]) -> dict[str, list[EncodedProblem]]:
    return {"problems": problems}


class CompactTrainer(Trainer):
    """Trains a student on several teachers' rationales, each weighted by its compatibility with the student now.

    Args:
        model: a supported causal language model.
        args: settings; None for the defaults.
        train_dataset: instances (see `load_instances`).
        eval_dataset: instances whose loss `evaluate` reports.
        processing_class: the student's tokenizer.
        peft_config: adapter to train instead of all weights.
        **kwargs: passed on to transformers.Trainer.

    Raises:
        StudentError: the model or tokenizer cannot be used.
        DataError: no rationale is left to train on.
    """

    args: CompactConfig

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        args: CompactConfig | None = None,
        train_dataset: Sequence[Instance] | ProblemDataset | None = None,
        eval_dataset: Sequence[Instance] | ProblemDataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> None:
        args = args or CompactConfig(output_dir="compact-output")
        if processing_class is None:
            raise ConfigError("processing_class must be the student's tokenizer, got None; pass the tokenizer")
        if args.n_gpu > 1:
            raise ConfigError(f"{args.n_gpu} GPUs in one process are not supported; start with `accelerate launch`")
        self.scorer = Scorer(args.compatibility, args.weighting, args.seed)  # type: ignore[arg-type]
        self.pass_options = self.scorer.pass_options(args.consistency)
        self.encoder = Encoder(
            processing_class,
            args.text,  # type: ignore[arg-type]
            min(args.max_length, args.max_tokens_per_pass),
            self.scorer.config.thinking_expressions,
            args.infer_answers,
        )
        datasets = [None if data is None else self._encoded(data) for data in (train_dataset, eval_dataset)]
        if peft_config is not None:
            from peft import get_peft_model

            set_seed(args.seed)  # adapters start from random weights
            model = get_peft_model(model, peft_config)
        attach(model)
        super().__init__(
            model=model,
            args=args,
            data_collator=_collate,
            train_dataset=datasets[0],
            eval_dataset=datasets[1],
            processing_class=processing_class,
            **kwargs,
        )
        if args.fsdp and not self.is_fsdp_enabled:
            raise ConfigError(
                "fsdp: True shards on accelerators only; a CPU would train whole copies without a word. "
                "Leave fsdp out, or train on GPUs"
            )
        self.metrics = TrainingMetrics()
        self.trace = ScoreTrace(Path(str(args.trace)))
        self._rows: list[ScoreRow] = []
        self._observed: list[tuple[dict[str, Tensor], Tensor]] = []
        if datasets[0] is not None:
            logger.info("training on %s", datasets[0].summary())

    def _encoded(self, data: Sequence[Instance] | ProblemDataset) -> ProblemDataset:
        if isinstance(data, ProblemDataset):
            return data
        encoded = (problem for _, problem in self.scorer.encode(self.encoder, data))
        return ProblemDataset(encoded, self.encoder.max_length, self.scorer.rule)

    # ---- one step

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of one batch of problems; returns its share of the step's loss."""
        model.train()
        if hasattr(self.optimizer, "train") and callable(self.optimizer.train):
            self.optimizer.train()
        problems = inputs["problems"]
        # DistributedDataParallel averages gradients over ranks; the mean over all ranks' problems needs their sum.
        share = self.accelerator.num_processes / float(num_items_in_batch or len(problems))
        loss = torch.zeros((), device=self.args.device)
        passes = self._passes(problems, self.train_dataset.problems)
        for index, (job, counts) in enumerate(passes):
            with contextlib.nullcontext() if index == len(passes) - 1 else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    total = self._job_loss(model, job, counts)
                self.accelerator.backward(total * share, **self._backward_options())
            loss += total.detach().float() * share
        self._write_trace()
        ends_step = self.accelerator.sync_gradients
        self.metrics.add_loss(float(loss), ends_step, self.accelerator.num_processes)
        if ends_step:
            self._observe_step()
        return loss

    def _stop(self, what: str) -> RunError:
        """The error that ends a training which has left the numbers; nothing of its step is saved."""
        return RunError(
            f"step {self.state.global_step + 1}: {what}; training stopped, and the checkpoints before it stay as they "
            "are. Lower train.learning_rate or train.max_grad_norm, leave train.fp16 out, or look at those problems"
        )

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The gradient's norm, before the step that it belongs to. Raises RunError where it is no number."""
        norm = super()._get_grad_norm(model, grad_norm)
        # Under fp16 the loss scaler skips steps whose gradient overflows; that is no fault.
        if self.accelerator.scaler is None and norm is not None and not math.isfinite(float(norm)):
            raise self._stop(f"the gradient's norm is {float(norm)}")
        return norm

    def _require_finite_weights(self) -> None:
        for name, weight in self.model.named_parameters():
            own = getattr(weight, "to_local", lambda weight=weight: weight)()  # a rank's part of it
            if weight.requires_grad and not bool(torch.isfinite(own.detach()).all()):
                raise self._stop(f"weight {name} is no longer finite after step {self.state.global_step}")

    def _backward_options(self) -> dict[str, Any]:
        # The loss is scaled already; DeepSpeed would divide it by the accumulation steps again.
        return {"scale_wrt_gas": False} if self.accelerator.distributed_type == DistributedType.DEEPSPEED else {}

    def _passes(self, problems: Sequence[EncodedProblem], of: Sequence[EncodedProblem]) -> list[tuple[Job, bool]]:
        """Jobs with whether they count.

        Ranks meet in every batch: one that has no problem in it reads the first `of` all, for nothing. Where each has a
        part of the weights, all must read equally often: those with fewer jobs read their last one again. Else they
        meet in the backward of the last job, which must be of one layout: where none is, one is read again for nothing.
        """
        jobs = plan_jobs(problems or of[:1], self.pass_options, self.args.max_tokens_per_pass, self.args.device)
        if torch.is_grad_enabled():
            # The longest first, while there are no gradients yet, and memory is least in pieces.
            jobs.sort(key=lambda job: (len(job.layouts) > 1, job.longest), reverse=True)
        passes = [(job, bool(problems)) for job in jobs]
        if self._in_parts:
            passes += [(jobs[-1], False)] * (max(gather_object([len(jobs)])) - len(jobs))
        elif torch.is_grad_enabled() and self.accelerator.num_processes > 1 and len(jobs[-1].layouts) > 1:
            passes.append((Job(jobs[-1].problems, jobs[-1].layouts[-1:]), False))
        return passes

    @property
    def _in_parts(self) -> bool:
        """Whether each rank holds a part of the weights (FSDP, DeepSpeed)."""
        return self.accelerator.num_processes > 1 and (self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def _require_whole_passes(self, problems: Sequence[EncodedProblem]) -> None:
        """Refuse problems that take several passes where ranks hold parts of the weights and must stay in step."""
        if not self._in_parts:
            return
        budget, with_gold = self.args.max_tokens_per_pass, self.pass_options.with_gold
        longest = max(problems, key=lambda problem: len(lay_out([problem], with_gold).tokens))
        if (size := len(lay_out([longest], with_gold).tokens)) > budget:
            raise ConfigError(
                f"max_tokens_per_pass must be >= {size} under FSDP and DeepSpeed, where every problem is read in one "
                f"pass (the longest is {longest.id!r}), got {budget}; raise it, or lower max_length"
            )

    def _job_loss(self, model: nn.Module, job: Job, counts: bool = True) -> Tensor:
        """Sum over a job's problems of the loss, or zero; keeps what the log and the trace want to know."""
        outputs = read_job(model, job, self.pass_options)
        if not counts:
            return 0.0 * outputs.nll_BKT.sum()
        scores = self.scorer.scores(outputs)
        weights_BK = self.scorer.weights(scores, outputs.problems, epoch=int(self.state.epoch or 0))
        terms = aggregate(
            scores["difficulty"], weights_BK, outputs.gold_logprob, outputs.problems, self.args.consistency
        )
        if model.training:
            if not math.isfinite(value := float(terms.total.detach())):
                raise self._stop(f"the loss is {value} on {', '.join(repr(p.id) for p in job.problems)}")
            host = {name: value.detach().float().cpu() for name, value in scores.items()}
            weights_BK, present_BK = weights_BK.float().cpu(), outputs.present_BK.cpu()
            self.metrics.add(job.problems, host, weights_BK, terms)
            self._note(job, host, weights_BK)
            if self.scorer.running is not None:
                self._observed.append((host, present_BK))
        return terms.total

    def _note(self, job: Job, scores: dict[str, Tensor], weights_BK: Tensor) -> None:
        """Keep every problem's scores and weights for the trace."""
        for index, problem in enumerate(job.problems):
            count = len(problem.branches)
            own_scores = {name: value[index, :count] for name, value in scores.items()}
            self._rows.append(score_row(problem, own_scores, weights_BK[index, :count]))

    def _write_trace(self) -> None:
        """Write what was noted of a batch, with the optimizer step that it contributes to.

        Once a batch, not once a job: ranks talk to each other here, and their batches may be divided into more or
        fewer jobs.
        """
        rows, self._rows = gather_object(self._rows), []
        if self.is_world_process_zero():
            self.trace.append(rows, epoch=float(self.state.epoch or 0.0), step=self.state.global_step)

    def _observe_step(self) -> None:
        """Take an optimizer step's scores, of all ranks, into the running statistics."""
        if self.scorer.running is None:
            return
        for scores, present_BK in gather_object(self._observed):
            self.scorer.observe(scores, present_BK)
        self._observed = []

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | int | None:
        """Problems of the whole optimizer step, over all accumulation steps and ranks.

        Where an epoch does not fill the last batch of every rank, accelerate does with problems from its start; these
        were read already, and are taken out.
        """
        ranks = self.accelerator.num_processes
        if ranks > 1 and self.accelerator.gradient_state.end_of_dataloader and not self.args.dataloader_drop_last:
            problems = batch_samples[-1]["problems"]
            if rest := len(self.train_dataset) % (ranks * len(problems)):
                del problems[max(rest - self.accelerator.process_index * len(problems), 0) :]
        count = torch.tensor(sum(len(batch["problems"]) for batch in batch_samples), device=device)
        return self.accelerator.gather(count).sum() if ranks > 1 else count

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """6 * parameters * tokens of the batch's rows (Kaplan et al. 2020)."""
        tokens = sum(problem.size for problem in inputs["problems"])
        return 6 * tokens * sum(parameter.numel() for parameter in self.model.parameters())

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        """Grouped by length if asked for; the order depends on seed and epoch alone, so a resumed run keeps it."""
        if self.args.train_sampling_strategy == "group_by_length":
            seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
            group = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            return LengthGroupedSampler((train_dataset or self.train_dataset).lengths, group, seed)
        return super()._get_train_sampler(train_dataset)

    def get_train_dataloader(self) -> Any:
        """The loader of the training problems; the order of an epoch is the same where training goes on inside it."""
        loader = super().get_train_dataloader()
        order = getattr(getattr(loader.batch_sampler, "batch_sampler", None), "sampler", None)
        if isinstance(order, LengthGroupedSampler):  # with several ranks accelerate would not find it to set its epoch
            loader.set_sampler(order)
        return loader

    # ---- evaluation

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Mean loss over the problems of `eval_dataset`, exact over batches and ranks."""
        dataset = eval_dataset if eval_dataset is not None else self.eval_dataset
        if dataset is None:
            raise ConfigError("evaluate needs an eval_dataset, got None; pass instances")
        self.model.eval()
        self._require_whole_passes((dataset := self._encoded(dataset)).problems)
        mine = dataset.problems[self.accelerator.process_index :: self.accelerator.num_processes]
        total = torch.zeros((), device=self.args.device)
        for job, counts in self._passes(mine, dataset.problems):
            with self.compute_loss_context_manager():
                total += self._job_loss(self.model, job, counts).float()
        total = self.accelerator.reduce(total, "sum")
        metrics = {f"{metric_key_prefix}_loss": float(total) / len(dataset)}
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # ---- log, save, resume

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what transformers logs plus weights, wins, scores, entropy and loss terms since the last time.

        The loss too is ours: transformers' own forgets the steps before a resume.
        """
        super().log({**logs, **self.metrics.collect()} if self.model.training else logs, start_time)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train; `resume_from_checkpoint=True` goes on from the newest complete checkpoint of `output_dir`.

        Raises:
            RunError: a checkpoint that was named is not complete, or none of those there is; another rank is gone.
            ConfigError: a problem takes more than one pass under FSDP or DeepSpeed.
        """
        if isinstance(self.train_dataset, ProblemDataset):
            self._require_whole_passes(self.train_dataset.problems)
        checkpoint: Path | None = None
        if resume_from_checkpoint is True:
            checkpoint = newest_complete(Path(str(self.args.output_dir)))
        elif resume_from_checkpoint:
            checkpoint = require_complete(Path(resume_from_checkpoint))
        step = self._start_from(checkpoint)
        if self.is_world_process_zero():
            if checkpoint is not None and (wrong := trace_damage(checkpoint, self.trace.path)):
                raise RunError(f"cannot resume from {checkpoint}: {wrong}; move both elsewhere to start anew")
            self.trace.truncate(step)
        try:
            return super().train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint), **kwargs)
        except RuntimeError as error:
            if self.accelerator.num_processes > 1 and is_lost_rank(error):
                raise lost_rank(error, self.accelerator.process_index, self.state.global_step) from error
            raise

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        self._require_finite_weights()
        unlogged = self.metrics.totals()
        with no_rotation(self.args):
            super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save and folder.is_dir():
            moments = self.scorer.running.moments if self.scorer.running is not None else {}
            self.trace.sync()
            state = {"step": self.state.global_step, "moments": moments, "unlogged": unlogged}
            (folder / STATE).write_text(json.dumps(state | trace_so_far(self.trace.path)), encoding="utf-8")
            tidy(folder, self.args)
            seal(folder)
            rotate(folder, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _start_from(self, checkpoint: Path | None) -> int:
        """Take over what a checkpoint holds, and nothing of a training before, which may have ended inside a step."""
        state = json.loads((checkpoint / STATE).read_text("utf-8") if checkpoint else '{"step": 0, "moments": {}}')
        self._rows, self._observed = [], []
        if self.scorer.running is not None:
            self.scorer.running.moments = {name: tuple(m) for name, m in state["moments"].items()}
        self.metrics.sums.clear()
        if self.is_world_process_zero():  # it goes on with the sums of all ranks
            self.metrics.sums.update(state.get("unlogged", {}))
        return int(state["step"])

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the student. Raises RunError where its weights are no numbers."""
        self._require_finite_weights()
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            tidy(Path(output_dir or str(self.args.output_dir)), self.args)
