"use strict";
// A decode is a list of tokens, each with the forward that wrote it last (from 0; -1: given; -2: past the end). The page
// shows the canvas after `now` forwards; a change of `now` touches only the tokens between.
const GIVEN = -1, PAST = -2;
const SEVERAL = -1; // in place of a decode's place: several wrote the token, in forwards of one number
const RAMPS = { // by theme: for the order of forwards viridis, in the dark its upper part; for log-probs doubt to certainty
  light: {
    step: [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129], [92, 200, 99],
      [170, 220, 50], [253, 231, 37]],
    log_prob: [[197, 58, 20], [235, 122, 54], [250, 189, 120], [240, 228, 212], [176, 203, 233]],
  },
  dark: {
    step: [[94, 76, 160], [70, 106, 172], [44, 134, 160], [38, 163, 143], [82, 194, 108], [162, 218, 66], [253, 231, 37]],
    log_prob: [[255, 135, 80], [214, 98, 44], [150, 74, 44], [88, 70, 70], [50, 70, 104]],
  },
};
const HUES = [[0, 114, 178], [230, 159, 0], [0, 158, 115], [204, 121, 167], [86, 180, 233], [240, 228, 66], [110, 76, 160],
  [140, 86, 60]]; // of the decodes that stand side by side, again from the first behind the last
const TOGETHER = { light: [208, 213, 222], dark: [76, 86, 102] };
const DOUBT = -3; // a log-prob of this or less has the first colour
const SECONDS = 8; // that the longest decode plays for at 1x, within 2 to 40 forwards a second
const dark = matchMedia("(prefers-color-scheme: dark)");
const $ = (id) => document.getElementById(id);
const prompts = JSON.parse($("data").textContent).prompts;
let panes = [], now = 0, last = 0, playing = 0, colour = "step";

function make(name, of = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(of)) {
    if (key in node) node[key] = value; else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}
const theme = () => dark.matches ? "dark" : "light";
const ramp_of = (what) => RAMPS[theme()][what];
const hue_of = (place) => place === SEVERAL ? TOGETHER[theme()] : HUES[place % HUES.length];
const number = (value, digits) => value.toLocaleString("en", { maximumFractionDigits: digits });
const counted = (count, word) => `${number(count, 0)} ${word}${count === 1 ? "" : "s"}`;
const visible = (piece) => piece.replace(/\n/g, "⏎").replace(/\t/g, "⇥");

function between(ramp, share) {
  const at = Math.min(Math.max(share, 0), 1) * (ramp.length - 1), low = Math.min(Math.floor(at), ramp.length - 2);
  return ramp[low].map((c, k) => Math.round(c + (at - low) * (ramp[low + 1][k] - c)));
}

function shade([r, g, b]) { // a background, and the ink that is read on it
  const light = [r, g, b].map((c) => (c / 255) ** 2.2), bright = 0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2];
  return { c: `rgb(${r} ${g} ${b})`, i: bright > 0.179 ? "#000000" : "#ffffff" };
}

class Pane {
  constructor(decode, place, most) {
    Object.assign(this, decode, { place });
    this.end = this.steps.findLastIndex((step) => step !== PAST) + 1; // behind it nothing was decoded
    this.forwards = Math.max(-1, ...this.steps) + 1;
    this.by = Array.from({ length: this.forwards }, () => []); // positions by the forward that wrote them
    this.steps.forEach((step, at) => step >= 0 && this.by[step].push(at));
    this.total = this.by.reduce((sum, each) => sum + each.length, 0);
    this.now = 0;
    this.cursor = -1;
    this.build(most);
  }

  build(most) {
    const tiles = [["NFE", this.nfe, this.nfe / most.nfe, 0], ["work", this.work, this.work / most.work, 1],
      ["tokens", this.tokens, null, 0], ["TPF", this.tokens / Math.max(this.nfe, 1), null, 2]];
    if (most.cheap) tiles.splice(1, 0, ["cheap passes", this.cheap, this.cheap / most.cheap, 0]);
    const settings = this.settings.flatMap(([name, value], at) =>
      [at ? " · " : "", `${name} `, make("b", {}, String(value))]);
    this.done = make("span", { className: "done" });
    // The tokens are for eyes: a screen reader reads `text`, and passes the arrow keys on to an application.
    this.text = make("p", { className: "unseen" });
    this.canvas = make("div", { className: "canvas", tabIndex: 0, role: "application", "aria-roledescription": "canvas",
      "aria-label": `${this.name}: the arrow keys move from token to token` },
      make("div", { "aria-hidden": "true" }, ...this.tokensOf()));
    this.map = make("canvas", { className: "map", role: "img", "aria-label":
      `${this.name}: position from left to right, forward from top to bottom` });
    this.about = make("p", { className: "about", "aria-live": "polite" });
    const table = make("details", {}, make("summary", {}, "Forward by forward, as a table"), make("div"));
    table.addEventListener("toggle", () => table.open && table.lastChild.replaceChildren(this.table()), { once: true });
    this.node = make("article", { className: "pane", "aria-label": this.name },
      make("div", {}, this.done, make("h2", {}, this.label), make("p", { className: "settings" }, ...settings)),
      make("dl", {}, ...tiles.map(([name, value, share, digits]) => make("div", {}, make("dt", {}, name),
        make("dd", {}, number(value, digits)), share === null ? null :
          make("div", { className: "bar" }, make("i", { style: `width: ${Math.max(2, 100 * share)}%` })))))
      , this.text, this.canvas, this.about, this.map, table);
    this.canvas.addEventListener("pointermove", (event) => this.point(this.nodes.indexOf(event.target)));
    this.canvas.addEventListener("pointerleave", () => this.point(-1));
    this.canvas.addEventListener("blur", () => this.point(-1));
    this.canvas.addEventListener("keydown", (event) => this.walk(event));
  }

  blockOf(at) { // from 1; where blocks are counted from the prompt's first token, the first one holds the rest of it
    return Math.floor((at + this.lead) / this.block) + 1;
  }

  tokensOf() {
    const shown = [], others = new Set(this.other);
    this.nodes = this.pieces.slice(0, this.end).map((piece, at) => {
      if (this.block && at && this.blockOf(at) !== this.blockOf(at - 1)) {
        shown.push(make("span", { className: "edge", title: `block ${this.blockOf(at)}`, "aria-hidden": "true" }));
      }
      // A special token has no text; of a character that is cut over several tokens the last one has it.
      const text = piece === null ? "·" : piece === "" ? "∎" : visible(piece);
      const node = make("span", { className: this.steps[at] === GIVEN ? "t given" : "t" }, text);
      if (piece === "") node.classList.add("end");
      if (others.has(at)) node.classList.add("other");
      shown.push(node);
      if (piece && piece.includes("\n")) shown.push("\n");
      return node;
    });
    const past = this.steps.length - this.end;
    if (past) shown.push(make("span", { className: "past" }, `  ${counted(past, "position")} past the end`));
    return shown;
  }

  paint() {
    const ramp = ramp_of(colour), colour_of = {
      step: (at) => between(ramp, this.steps[at] / Math.max(this.forwards - 1, 1)),
      log_prob: (at) => this.log_prob?.[at] == null ? null : between(ramp, 1 - this.log_prob[at] / DOUBT),
      policy: (at) => hue_of(this.first[at]),
      none: () => null,
    }[colour];
    this.shades = this.nodes.map((_, at) => {
      const found = this.steps[at] < 0 ? null : colour_of(at);
      return found && shade(found);
    });
    const style = getComputedStyle(document.documentElement);
    this.inks = ["--mask", "--soft"].map((name) => style.getPropertyValue(name));
    this.node.style.setProperty("--own", shade(hue_of(this.place)).c);
    this.nodes.forEach((node, at) => {
      node.style.setProperty("--c", this.shades[at]?.c ?? "transparent");
      node.style.setProperty("--i", this.shades[at]?.i ?? "var(--ink)");
    });
    this.draw();
  }

  go(step) {
    const to = Math.min(step, this.forwards), fresh = (at, on) =>
      this.by[at - 1]?.forEach((token) => this.nodes[token].classList.toggle("fresh", on));
    fresh(this.now, false);
    for (let at = this.now; at < to; at++) this.by[at].forEach((token) => this.nodes[token].classList.add("on"));
    for (let at = to; at < this.now; at++) this.by[at].forEach((token) => this.nodes[token].classList.remove("on"));
    this.now = to;
    this.done.textContent = to < this.forwards ? `${to} / ${this.forwards}` : "✓ done";
    this.done.classList.toggle("all", to === this.forwards);
    if (step === to && (to < this.forwards || playing)) {
      fresh(to, true);
      this.follow(this.by[to - 1]);
    }
    this.draw();
  }

  follow(fresh) { // scrolls a long canvas to what was written, where none of it is to be seen
    const box = this.canvas, high = box.clientHeight;
    if (!fresh?.length || box.scrollHeight <= high) return;
    const tops = fresh.map((at) => this.nodes[at].offsetTop);
    if (!tops.some((top) => top >= box.scrollTop && top < box.scrollTop + high)) box.scrollTop = tops[0] - high / 2;
  }

  draw() { // the map: a mark at each token's position and forward, and a line under the forward that is shown
    const { clientWidth: wide, clientHeight: box } = this.map, ratio = devicePixelRatio || 1, top = 10;
    if (!wide) return;
    const high = box - top - 1;
    if (this.map.width !== Math.round(wide * ratio) || this.map.height !== Math.round((high + 1) * ratio)) {
      this.map.width = Math.round(wide * ratio);
      this.map.height = Math.round((high + 1) * ratio);
    }
    const pen = this.map.getContext("2d"), [faint, ink] = this.inks;
    const x = wide / this.end, y = high / Math.max(this.forwards, 1);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, wide, box);
    for (let at = 0; at < this.end; at++) {
      const step = this.steps[at];
      if (step < 0) continue;
      pen.fillStyle = step < this.now ? this.shades[at]?.c ?? ink : faint;
      pen.fillRect(at * x, step * y, Math.max(x - (x > 3 ? 1 : 0), 1.5), Math.max(y - (y > 3 ? 1 : 0), 1.5));
    }
    pen.fillStyle = ink;
    pen.fillRect(0, Math.min(this.now * y, high - 1), wide, 1);
  }

  point(at) {
    if (at === this.cursor || (at < 0 && this.cursor < 0)) return;
    this.nodes[this.cursor]?.classList.remove("at");
    this.cursor = at;
    this.nodes[at]?.classList.add("at");
    if (at < 0) return this.about.replaceChildren();
    const step = this.steps[at], hidden = step >= this.now, log = this.log_prob?.[at];
    const facts = [` position ${at}`, this.block && `block ${this.blockOf(at)}`,
      hidden ? "not yet committed" : `token ${this.ids[at]}`, step >= 0 ? `forward ${step + 1} of ${this.forwards}` : "given",
      !hidden && step >= 0 && log != null && `log-prob ${log.toFixed(3)} (p ${Math.exp(log).toFixed(3)})`];
    if (this.first && !hidden && step >= 0) {
      facts.push(this.first[at] === SEVERAL ? "first by several" : `first by ${panes[this.first[at]].name}`);
      if (this.other.includes(at)) facts.push(`${panes[0].name} has ${panes[0].word(at)}`);
    }
    this.about.replaceChildren(make("b", {}, hidden ? "[MASK]" : this.word(at)), facts.filter(Boolean).join(" · "));
  }

  word(at) {
    const piece = this.pieces[at];
    if (at >= this.end || this.steps[at] === PAST) return "nothing";
    return piece === null ? "a part of a character" : piece === "" ? "a special token" : visible(piece);
  }

  walk(event) {
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    this.point(Math.min(Math.max(this.cursor + by, 0), this.end - 1));
    this.nodes[this.cursor]?.scrollIntoView({ block: "nearest" });
  }

  table() {
    const cell = (name, ...of) => make(name, name === "th" ? { scope: "col" } : {}, ...of);
    return make("table", {}, make("thead", {}, make("tr", {}, ...["Forward", "Tokens", "What it wrote"].map((text) =>
      cell("th", text)))), make("tbody", {}, ...this.by.map((tokens, step) => make("tr", {}, cell("td", step + 1),
      cell("td", tokens.length), cell("td", tokens.map((at) => `${at}:${visible(this.pieces[at] || "∎")}`).join("  "))))));
  }

  tell() { // what a screen reader says: of the canvas its text, and what changed
    let text = "", masks = 0;
    this.pieces.slice(0, this.end).forEach((piece, at) => {
      const hidden = this.steps[at] >= this.now;
      if (!hidden && masks) text += ` (${counted(masks, "mask")}) `;
      masks = hidden ? masks + 1 : 0;
      if (!hidden) text += piece ?? "";
    });
    if (masks) text += ` (${counted(masks, "mask")})`;
    const where = `${this.name}, after forward ${this.now} of ${this.forwards}`;
    this.text.textContent = `After forward ${this.now} of ${this.forwards}: ${text}`;
    return `${where}: ${counted(this.by.slice(0, this.now).flat().length, "token")} of ${this.total} committed`;
  }
}

function go(step, tell = true) {
  now = Math.min(Math.max(Math.round(step), 0), last);
  panes.forEach((pane) => pane.go(now));
  $("step").value = now;
  $("step").setAttribute("aria-valuetext", `after forward ${now} of ${last}`);
  $("count").textContent = `forward ${now} of ${last}`;
  if (tell && !playing) $("told").textContent = panes.map((pane) => pane.tell()).join(". ");
}

function play(on) {
  cancelAnimationFrame(playing);
  playing = 0;
  $("play").classList.toggle("playing", on);
  $("play").setAttribute("aria-label", on ? "Pause" : "Play");
  if (!on) return go(now);
  if (now >= last) go(0, false);
  let before = performance.now(), at = now;
  const frame = (time) => {
    at += (time - before) / 1000 * Math.min(Math.max(last / SECONDS, 2), 40) * Number($("speed").value);
    before = time;
    if (Math.floor(at) !== now) go(Math.floor(at), false);
    if (now >= last) play(false); else playing = requestAnimationFrame(frame);
  };
  playing = requestAnimationFrame(frame);
}

function paint() {
  const ends = { step: ["first forward", "last"], log_prob: [`log-prob ${DOUBT}`, "0"] }[colour];
  const bar = (background) => make("i", { style: `background: ${background}` });
  const colour_in = (rgb) => `rgb(${rgb.join(" ")})`;
  $("legend").replaceChildren(...ends ? [ends[0], bar(`linear-gradient(90deg, ${ramp_of(colour).map(colour_in).join(", ")})`),
    ends[1]] : colour === "policy" ? ["first by", ...panes.flatMap((pane) => [bar(colour_in(hue_of(pane.place))), pane.name]),
    bar(colour_in(hue_of(SEVERAL))), "several", make("u", {}, "ab"), `not as in ${panes[0].name}`] : []);
  document.body.dataset.colour = colour;
  panes.forEach((pane) => pane.paint());
}

function choose(at) {
  $("prompts").value = at;
  const { name, text, of } = prompts[at], most = (key) => Math.max(...of.map((decode) => decode[key]));
  const words = text ?? (name === null ? "A decode" : String(name)); // names of special tokens stand back
  $("prompt").replaceChildren(...words.split(/(<\|[^|\s]*\|>)/).map((part, at) => at % 2 ? make("span", {}, part) : part));
  panes = of.map((decode, place) => new Pane(decode, place, { nfe: most("nfe"), cheap: most("cheap"), work: most("work") }));
  last = Math.max(...panes.map((pane) => pane.forwards));
  $("step").max = last;
  $("panes").replaceChildren(...panes.map((pane) => pane.node));
  const choice = (value) => $("colours").querySelector(`[value=${value}]`);
  choice("log_prob").disabled = panes.every((pane) => !pane.log_prob);
  choice("policy").disabled = panes.every((pane) => !pane.first);
  if (choice(colour).disabled) choice("step").click();
  paint();
}

prompts.forEach(({ name, text }, at) => $("prompts").append(new Option(name === null ? text ?? at : name, at)));
$("choose").hidden = prompts.length < 2;
$("prompts").addEventListener("change", (event) => { play(false); choose(event.target.value); go(0); });
$("play").addEventListener("click", () => play(!playing));
$("back").addEventListener("click", () => { play(false); go(now - 1); });
$("forth").addEventListener("click", () => { play(false); go(now + 1); });
$("step").addEventListener("input", (event) => { const to = event.target.value; play(false); go(to); });
$("colours").addEventListener("change", (event) => { colour = event.target.value; paint(); });
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select, input, summary")) return;
  const keys = { ArrowRight: () => go(now + 1), ArrowLeft: () => go(now - 1), Home: () => go(0), End: () => go(last) };
  if (event.key === " " && !event.target.closest("button")) play(!playing);
  else if (keys[event.key]) { play(false); keys[event.key](); } else return;
  event.preventDefault();
});
dark.addEventListener("change", paint);
addEventListener("resize", () => panes.forEach((pane) => pane.draw()));

const asked = new URLSearchParams(location.hash.slice(1)); // #step=5&colour=log_prob&prompt=2
choose(Math.max(0, Math.min(Math.trunc(Number(asked.get("prompt"))) || 0, prompts.length - 1)));
$("colours").querySelector(`[value="${CSS.escape(asked.get("colour") ?? "step")}"]:enabled`)?.click();
go(asked.has("step") ? Number(asked.get("step")) || 0 : last);
