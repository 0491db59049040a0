// The explorer: choose a problem, read its rationales side by side. Model text is appended as text only.
(() => {
  const $ = (id) => document.getElementById(id);
  const packed = $("explorer-problems");
  if (!packed) return;
  const list = $("ex-list"), search = $("ex-search"), showing = $("ex-show"), sorting = $("ex-sort"), detail = $("ex-problem");
  const ROW = 54, SHAPES = 8;
  const SIGNS = { r: ["✓", "right"], w: ["✗", "wrong"], u: ["?", {}], n: ["•", {}], "-": ["–", {}] };

  const unpack = async (text) => {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  };
  // Elements with their class or attributes, and what stands inside: nodes, or strings as text.
  const filled = (node, look, inside) => {
    for (const [name, value] of Object.entries(typeof look === "string" ? { class: look } : look)) node.setAttribute(name, value);
    node.append(...inside);
    return node;
  };
  const el = (tag, look = {}, ...inside) => filled(document.createElement(tag), look, inside);
  const svg = (tag, look, ...inside) => filled(document.createElementNS("http://www.w3.org/2000/svg", tag), look, inside);
  const button = (text, look, action) => {
    const node = el("button", { type: "button", ...look }, text);
    node.addEventListener("click", action);
    return node;
  };
  const digits = (value, count = 2) => (value === null || value === undefined ? "–" : value.toFixed(count).replace("-", "−"));

  let index = null, lines = [], found = [], place = 0, student = "after", wanted = 0;

  // ---- the list: only the rows in sight exist

  const space = el("div", "ex-space");
  list.append(space);
  const line = (i) => {
    const { id, question, answer, verdicts } = index.problems[found[i]];
    const signs = [...verdicts].map((sign) => el("span", SIGNS[sign][1], SIGNS[sign][0]));
    const row = el("div", { class: "ex-item", id: `ex-row-${i}`, role: "option" }, el("b", {}, question.slice(0, 160) || id),
      el("small", {}, el("span", {}, `${id.slice(0, 60)} · ${answer.slice(0, 40)}`), el("span", "signs", ...signs)));
    filled(row, { "aria-selected": i === place, "aria-setsize": found.length, "aria-posinset": i + 1 }, []);
    row.style.top = `${i * ROW}px`;
    row.addEventListener("click", () => choose(i));
    return row;
  };
  const drawList = () => {
    const first = Math.max(Math.floor(list.scrollTop / ROW) - 4, 0);
    const last = Math.min(Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 4, found.length);
    space.style.height = `${found.length * ROW}px`;
    space.replaceChildren(...found.slice(first, last).map((_, i) => line(first + i)));
    if (found.length) list.setAttribute("aria-activedescendant", `ex-row-${place}`);
    else list.removeAttribute("aria-activedescendant");
  };

  const KEEP = {
    all: () => true,
    mixed: (v) => v.includes("r") && v.includes("w"),
    right: (v) => v.includes("r") && !v.includes("w") && !v.includes("u"),
    wrong: (v) => !v.includes("r") && v.includes("w"),
  };
  const heaviest = (weights) => weights.reduce((best, w, k) => (w !== null && (best < 0 || w > weights[best]) ? k : best), -1);
  const ORDER = {
    data: null,
    uneven: (p) => -Math.max(0, ...p.weights),
    moved: (p) => -p.moved,
    fooled: (p) => (p.verdicts[heaviest(p.weights)] === "w" ? -Math.max(...p.weights) : 0),
  };
  const filter = (keep) => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    found = index.problems.map((_, i) => i).filter((i) => {
      const { id, question, answer, verdicts } = index.problems[i];
      const text = `${id} ${question} ${answer}`.toLowerCase();
      return KEEP[showing.value](verdicts) && words.every((word) => text.includes(word));
    });
    const key = ORDER[sorting.value];
    if (key) {
      const value = index.problems.map(key);
      found.sort((a, b) => value[a] - value[b] || a - b);
    }
    $("ex-count").textContent = `${found.length.toLocaleString("en")} of ${index.problems.length.toLocaleString("en")} problems`;
    list.scrollTop = 0;
    choose(Math.max(found.indexOf(keep), 0));
  };

  const choose = (i) => {
    place = Math.min(Math.max(i, 0), Math.max(found.length - 1, 0));
    const top = place * ROW;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    drawList();
    draw();
  };

  // ---- one problem

  const draw = async () => {
    const ticket = ++wanted;
    if (!found.length) {
      detail.replaceChildren(el("p", "nothing", "No problem matches. Clear the search or choose “all problems”."));
      return;
    }
    const number = found[place];
    const { question, answer, epochs, rationales } = await unpack(lines[number]);
    if (ticket !== wanted) return; // another one was chosen meanwhile
    const students = [...new Set(rationales.flatMap((r) => Object.keys(r.gains)))];
    const now = students.includes(student) ? student : students[0];
    const top = Math.max(0.01, ...rationales.flatMap((r) => r.weights || []));
    const cards = rationales.map((r) => card(r, epochs, top, now));
    detail.replaceChildren(
      head(index.problems[number].id, students, now),
      el("div", "ex-question", question || "The run folder does not hold the question."),
      el("p", "ex-gold", "gold answer ", el("b", {}, answer || "–")),
      ...(students.length ? [legend()] : []),
      el("div", "ex-cards", ...(cards.length ? cards : [el("p", "nothing", "No teacher wrote anything for this problem.")])),
    );
  };

  const head = (id, students, now) => {
    const nav = el("nav", { "aria-label": "Problem" });
    for (const name of students.length > 1 ? ["before", "after"] : []) {
      const look = { "aria-label": `Gains of the student ${name} training`, "aria-pressed": now === name };
      nav.append(button(`${name} training`, look, () => { student = name; draw(); }));
    }
    nav.append(button("↑", { "aria-label": "Previous problem" }, () => choose(place - 1)));
    nav.append(button("↓", { "aria-label": "Next problem" }, () => choose(place + 1)));
    return el("div", "ex-head", el("bdi", {}, id), nav);
  };

  const legend = () => {
    const full = digits(index.full_colour);
    return el("div", "ex-legend", el("span", {}, "Along the reading, the belief in the gold answer"),
      el("i", "g1", "rises"), el("i", "g4", `by ≥ ${full} nats`), el("i", "h1", "falls"), el("i", "h4", `by ≥ ${full}`),
      el("span", {}, el("u", {}, "underlined"), ": a thinking expression; where a text has none, the start of each sentence"));
  };

  const badge = (r, out) => {
    if (out) return el("span", "badge plain", r.status.replace("_", " "));
    if (r.verdict === "correct") return el("span", "badge right", "✓ right");
    if (r.verdict === "wrong") return el("span", "badge wrong", "✗ wrong");
    return el("span", "badge plain", r.verdict ? r.verdict.replace("_", " ") : "not checked");
  };

  const card = (r, epochs, top, now) => {
    const out = r.status && r.status !== "ok", weights = r.weights || [], several = epochs.length > 1;
    const mark = el("span", { class: `s${r.teacher % SHAPES}`, "aria-hidden": true }, "●");
    const box = el("div", out ? "ex-card out" : "ex-card",
      el("div", "ex-name", mark, el("bdi", {}, index.teachers[r.teacher]), badge(r, out)));
    if (weights.some((w) => w !== null)) {
      const said = el("small", {}, several ? `weight, was ${digits(weights[0])}` : "weight");
      box.append(el("div", "ex-weight", el("div", {}, el("b", {}, digits(weights.at(-1))), said),
        ...(several ? [spark(weights, epochs, top, r.teacher)] : [])), stats(r, several));
    }
    const facts = [];
    if (r.answer !== undefined && r.answer !== null) facts.push(`answer ${r.answer.slice(0, 80)}`);
    if (r.tokens) facts.push(`${r.tokens.toLocaleString("en")} tokens`);
    if (out) facts.push("took no part in training");
    if (facts.length) box.append(el("p", "ex-note", facts.join(" · ")));
    box.append(...(r.text ? reading(r, r.gains[now]) : [el("p", "ex-note", "No text in the run folder.")]));
    return box;
  };

  const spark = (weights, epochs, top, k) => {
    const known = weights.flatMap((w, i) => (w === null ? [] : [{
      cx: 4 + (122 * i) / Math.max(weights.length - 1, 1), cy: (34 - (30 * w) / top).toFixed(1), r: 3, class: "dot",
      "data-tip": `weight ${digits(w, 3)} after ${digits(epochs[i])} epochs`,
    }]));
    const label = `weight per epoch: ${weights.map((w) => digits(w)).join(", ")}`;
    return svg("svg", { viewBox: "0 0 130 38", class: `spark s${k % SHAPES}`, role: "img", "aria-label": label },
      svg("line", { x1: 0, x2: 130, y1: 35.5, y2: 35.5, class: "grid" }),
      svg("path", { d: `M${known.map(({ cx, cy }) => `${cx} ${cy}`).join("L")}`, class: "line" }),
      ...known.map((dot) => svg("circle", dot)));
  };

  const stats = (r, several) => {
    const row = (tag, cells) => el("tr", {}, ...cells.map((cell) => el(tag, {}, cell)));
    const shown = (values) => [...(several ? [values[0]] : []), values.at(-1)].map((value) => digits(value, 3));
    const body = el("tbody", {}, ...index.scores.map((name, s) => row("td", [name, ...shown(r.scores[s])])));
    return el("table", "ex-stats", ...(several ? [el("thead", {}, row("th", ["", "first", "last"]))] : []), body);
  };

  // ---- the text, coloured by the gain at each step

  const reading = (r, gains) => {
    const look = { class: "ex-text", tabindex: 0, "aria-label": `Rationale of ${index.teachers[r.teacher]}` };
    const text = el("div", look, ...(gains ? coloured(r.text, gains) : [r.text]));
    const more = button("Show all of it", { class: "ex-more" }, () => {
      more.textContent = text.classList.toggle("whole") ? "Show less" : "Show all of it";
    });
    return r.text.length > 1400 ? [text, more] : [text];
  };

  const coloured = (text, { lengths, gains, thinking }) => {
    let at = 0;
    const nodes = lengths.map((length, i) => {
      const words = text.slice(at, at += length), gain = gains[i], look = {};
      if (gain) {
        const share = Math.abs(gain) / 100 / index.full_colour;
        look.class = `${gain > 0 ? "g" : "h"}${share < 0.4 ? 1 : share < 0.7 ? 2 : share < 1 ? 3 : 4}`;
        look["data-tip"] = `${gain > 0 ? "+" : "−"}${Math.abs(gain / 100).toFixed(2)} nats`;
      }
      return gain || thinking[i] ? el("span", look, thinking[i] ? el("u", {}, words) : words) : words;
    });
    return [...nodes, el("span", "rest", text.slice(at))];
  };

  // ---- keys

  const typing = (node) => node instanceof HTMLElement && (node.matches("input, select, textarea") || node.isContentEditable);
  list.addEventListener("keydown", (event) => {
    const page = Math.max(Math.floor(list.clientHeight / ROW) - 1, 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1, PageDown: page, PageUp: -page, Home: -1e9, End: 1e9 };
    if (event.key in steps && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      choose(place + steps[event.key]);
    }
  });
  search.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "Enter") { event.preventDefault(); list.focus(); }
    if (event.key === "Escape") { search.value = ""; filter(found[place]); list.focus(); }
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
    const inside = $("explorer-app").contains(event.target);
    if (event.key === "/") { event.preventDefault(); search.focus(); search.select(); }
    else if (event.key === "Escape" && inside) list.focus();
    else if (event.key === "b" && inside) { student = student === "after" ? "before" : "after"; draw(); }
    else if (event.key === "g" && inside) detail.classList.toggle("plainly");
  });
  list.addEventListener("scroll", drawList, { passive: true });
  search.addEventListener("input", () => filter(found[place]));
  for (const choice of [showing, sorting]) choice.addEventListener("change", () => filter(found[place]));

  (async () => {
    try {
      index = await unpack($("explorer-index").textContent);
      lines = packed.textContent.split("\n");
      filter(0);
      detail.dataset.ready = "true";
    } catch (error) {
      detail.replaceChildren(el("p", "nothing", `The explorer could not unpack its data (${error.message}). A browser of 2023 or newer is needed.`));
    }
  })();
})();
