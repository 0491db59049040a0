// The explorer: choose a problem, read its rationales side by side. Model text is written with textContent only.
(() => {
  const packed = document.getElementById("explorer-problems");
  if (!packed) return;
  const $ = (id) => document.getElementById(id);
  const list = $("ex-list"), search = $("ex-search"), showing = $("ex-show"), sorting = $("ex-sort"), detail = $("ex-problem");
  const ROW = 54;
  const SIGNS = { r: ["✓", "right"], w: ["✗", "wrong"], u: ["?", ""], n: ["•", ""], "-": ["–", ""] };
  const SHAPES = 8;

  const unpack = async (text) => {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  };
  const el = (tag, css, text) => {
    const node = document.createElement(tag);
    if (css) node.className = css;
    if (text !== undefined && text !== null) node.textContent = text;
    return node;
  };
  const svg = (tag, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  };
  const digits = (value, count = 2) => (value === null || value === undefined ? "–" : value.toFixed(count).replace("-", "−"));

  let index = null, lines = [], found = [], place = 0, student = "after", wanted = 0;

  // ---- the list: only the rows in sight exist

  const space = el("div", "ex-space");
  list.append(space);
  const drawList = () => {
    const first = Math.max(Math.floor(list.scrollTop / ROW) - 4, 0);
    const last = Math.min(Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 4, found.length);
    space.style.height = `${found.length * ROW}px`;
    const rows = [];
    for (let i = first; i < last; i++) {
      const { id, question, answer, verdicts } = index.problems[found[i]];
      const row = el("div", "ex-item");
      row.id = `ex-row-${i}`;
      row.style.top = `${i * ROW}px`;
      row.setAttribute("role", "option");
      row.setAttribute("aria-selected", String(i === place));
      row.setAttribute("aria-setsize", found.length);
      row.setAttribute("aria-posinset", i + 1);
      row.append(el("b", "", question.slice(0, 160) || id));
      const small = el("small"), signs = el("span", "signs");
      small.append(el("span", "", `${id.slice(0, 60)} · ${answer.slice(0, 40)}`), signs);
      for (const sign of verdicts) signs.append(el("span", SIGNS[sign][1], SIGNS[sign][0]));
      row.append(small);
      row.addEventListener("click", () => choose(i));
      rows.push(row);
    }
    space.replaceChildren(...rows);
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
    uneven: (p) => -Math.max(0, ...p.weights.filter((w) => w !== null)),
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
    const problem = await unpack(lines[number]);
    if (ticket !== wanted) return; // another one was chosen meanwhile
    const { id } = index.problems[number];
    const students = new Set(problem.rationales.flatMap((r) => Object.keys(r.gains)));
    const now = students.has(student) ? student : [...students][0];
    const nodes = [head(id, students, now)];
    nodes.push(el("div", "ex-question", problem.question || "The run folder does not hold the question."));
    const gold = el("p", "ex-gold", "gold answer ");
    gold.append(el("b", "", problem.answer || "–"));
    nodes.push(gold);
    if (students.size) nodes.push(legend());
    const cards = el("div", "ex-cards");
    const top = Math.max(0.01, ...problem.rationales.flatMap((r) => (r.weights || []).filter((w) => w !== null)));
    for (const rationale of problem.rationales) cards.append(card(rationale, problem.epochs, top, now));
    if (!problem.rationales.length) cards.append(el("p", "nothing", "No teacher wrote anything for this problem."));
    nodes.push(cards);
    detail.replaceChildren(...nodes);
  };

  const button = (text, label, action, pressed) => {
    const node = el("button", "", text);
    node.type = "button";
    node.setAttribute("aria-label", label);
    if (pressed !== undefined) node.setAttribute("aria-pressed", String(pressed));
    node.addEventListener("click", action);
    return node;
  };

  const head = (id, students, now) => {
    const bar = el("div", "ex-head"), nav = el("nav");
    nav.setAttribute("aria-label", "Problem");
    bar.append(el("bdi", "", id), nav);
    if (students.size > 1) {
      for (const name of ["before", "after"]) {
        nav.append(button(`${name} training`, `Gains of the student ${name} training`, () => { student = name; draw(); }, now === name));
      }
    }
    nav.append(button("↑", "Previous problem", () => choose(place - 1)), button("↓", "Next problem", () => choose(place + 1)));
    return bar;
  };

  const legend = () => {
    const bar = el("div", "ex-legend");
    bar.append(el("span", "", "Along the reading, the belief in the gold answer"));
    bar.append(el("i", "g1", "rises"), el("i", "g4", `by ≥ ${digits(index.full_colour)} nats`), el("i", "h1", "falls"), el("i", "h4", `by ≥ ${digits(index.full_colour)}`));
    const thinking = el("span", "");
    thinking.append(el("u", "", "underlined"), ": a thinking expression; where a text has none, the start of each sentence");
    bar.append(thinking);
    return bar;
  };

  const badge = (r) => {
    if (r.status && r.status !== "ok") return el("span", "badge plain", r.status.replace("_", " "));
    if (r.verdict === "correct") return el("span", "badge right", "✓ right");
    if (r.verdict === "wrong") return el("span", "badge wrong", "✗ wrong");
    return el("span", "badge plain", r.verdict ? r.verdict.replace("_", " ") : "not checked");
  };

  const card = (r, epochs, top, now) => {
    const box = el("div", "ex-card" + (r.status && r.status !== "ok" ? " out" : ""));
    const name = el("div", "ex-name"), mark = el("span", `s${r.teacher % SHAPES}`, "●");
    mark.setAttribute("aria-hidden", "true");
    name.append(mark, el("bdi", "", index.teachers[r.teacher]), badge(r));
    box.append(name);
    const weights = r.weights || [], last = weights[weights.length - 1];
    if (weights.some((w) => w !== null)) {
      const line = el("div", "ex-weight"), value = el("div");
      value.append(el("b", "", digits(last)), el("small", "", epochs.length > 1 ? `weight, was ${digits(weights[0])}` : "weight"));
      line.append(value);
      if (epochs.length > 1) line.append(spark(weights, epochs, top, r.teacher));
      box.append(line, stats(r, epochs));
    }
    const facts = [];
    if (r.answer !== undefined && r.answer !== null) facts.push(`answer ${r.answer.slice(0, 80)}`);
    if (r.tokens) facts.push(`${r.tokens.toLocaleString("en")} tokens`);
    if (r.status && r.status !== "ok") facts.push("took no part in training");
    if (facts.length) box.append(el("p", "ex-note", facts.join(" · ")));
    if (r.text) reading(box, r, now);
    else box.append(el("p", "ex-note", "No text in the run folder."));
    return box;
  };

  const spark = (weights, epochs, top, k) => {
    const box = svg("svg", { viewBox: "0 0 130 38", class: `spark s${k % SHAPES}`, role: "img" });
    box.setAttribute("aria-label", `weight per epoch: ${weights.map((w) => digits(w)).join(", ")}`);
    const x = (i) => 4 + (122 * i) / Math.max(weights.length - 1, 1), y = (w) => 34 - (30 * w) / top;
    box.append(svg("line", { x1: 0, x2: 130, y1: 35.5, y2: 35.5, class: "grid" }));
    const points = weights.flatMap((w, i) => (w === null ? [] : [`${x(i)} ${y(w).toFixed(1)}`]));
    box.append(svg("path", { d: `M${points.join("L")}`, class: "line" }));
    weights.forEach((w, i) => {
      if (w === null) return;
      const dot = svg("circle", { cx: x(i), cy: y(w).toFixed(1), r: 3, class: "dot" });
      dot.dataset.tip = `weight ${digits(w, 3)} after ${digits(epochs[i])} epochs`;
      box.append(dot);
    });
    return box;
  };

  const stats = (r, epochs) => {
    const table = el("table", "ex-stats");
    if (epochs.length > 1) {
      const row = table.createTHead().insertRow();
      for (const text of ["", "first", "last"]) row.append(el("th", "", text));
    }
    const body = table.createTBody();
    index.scores.forEach((name, s) => {
      const values = r.scores[s], row = body.insertRow();
      row.append(el("td", "", name));
      if (epochs.length > 1) row.append(el("td", "", digits(values[0], 3)));
      row.append(el("td", "", digits(values[values.length - 1], 3)));
    });
    return table;
  };

  // ---- the text, coloured by the gain at each step

  const reading = (box, r, now) => {
    const text = el("div", "ex-text");
    text.tabIndex = 0;
    text.setAttribute("aria-label", `Rationale of ${index.teachers[r.teacher]}`);
    const gains = r.gains[now];
    if (gains) colour(text, r.text, gains);
    else text.textContent = r.text;
    box.append(text);
    if (r.text.length > 1400) {
      const more = el("button", "ex-more", "Show all of it");
      more.type = "button";
      more.addEventListener("click", () => {
        const whole = text.classList.toggle("whole");
        more.textContent = whole ? "Show less" : "Show all of it";
      });
      box.append(more);
    }
  };

  const level = (gain) => {
    const share = Math.abs(gain) / 100 / index.full_colour;
    return share < 0.15 ? 0 : share < 0.4 ? 1 : share < 0.7 ? 2 : share < 1 ? 3 : 4;
  };

  // Steps and thinking expressions cut the text into pieces; neighbours that look the same become one node.
  const colour = (target, full, { start, lengths, gains, thinking }) => {
    // Offsets count code points, JavaScript strings UTF-16 units.
    const signs = /[\ud800-\udbff]/.test(full) ? [...full] : null;
    const slice = (a, b) => (signs ? signs.slice(a, b).join("") : full.slice(a, b));
    const marks = thinking.map(([from, length]) => [from, from + length]);
    const nodes = [slice(0, start)];
    let at = start, m = 0, plain = "";
    const flush = () => { if (plain) nodes.push(plain); plain = ""; };
    const piece = (a, b, gain) => {
      while (m < marks.length && marks[m][1] <= a) m++;
      let from = a;
      while (from < b) {
        const mark = m < marks.length && marks[m][0] < b ? marks[m] : null;
        const inside = mark !== null && mark[0] <= from;
        const to = Math.min(b, mark === null ? b : inside ? mark[1] : mark[0]);
        write(slice(from, to), gain, inside);
        if (inside && to === mark[1]) m++;
        from = to;
      }
    };
    const write = (words, gain, thinks) => {
      const strength = level(gain);
      if (!strength && !thinks) { plain += words; return; }
      flush();
      const node = el("span", strength ? `${gain > 0 ? "g" : "h"}${strength}` : "");
      node.append(thinks ? el("u", "", words) : words);
      if (strength) node.dataset.tip = `${gain > 0 ? "+" : "−"}${Math.abs(gain / 100).toFixed(2)} nats`;
      nodes.push(node);
    };
    lengths.forEach((length, s) => {
      piece(at, at + length, gains[s]);
      at += length;
    });
    flush();
    nodes.push(el("span", "rest", signs ? signs.slice(at).join("") : full.slice(at)));
    target.append(...nodes);
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
