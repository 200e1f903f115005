"use strict";
(async () => {
  const PAGE = 10;
  const CLAMP = 1500;
  const byId = (id) => document.getElementById(id);
  const packed = byId("packed");
  if (!packed) return;
  byId("count").textContent = "Unpacking…";

  const unpacked = (text) => {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
    const letters = atob(text);
    const bytes = new Uint8Array(letters.length);
    for (let index = 0; index < letters.length; index++) bytes[index] = letters.charCodeAt(index);
    return bytes;
  };
  const bytes = unpacked(packed.textContent);
  packed.remove();
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const data = JSON.parse(await new Response(stream).text());

  // Replies are [text, tokens, finished, margin]; the teacher's is the last column of every decoding.
  const teacher = data.arms.length - 1;
  const replyOf = (prompt, decoding, arm) => (arm === teacher ? prompt.teacher : prompt.replies[decoding][arm]);
  const shown = data.arms.map(() => true);

  const make = (name, className, text) => {
    const element = document.createElement(name);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };

  const key = (series) => {
    const space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg");
    const use = document.createElementNS(space, "use");
    svg.setAttribute("class", "key " + (series === null ? "s-teacher" : "s" + (series % 6)));
    svg.setAttribute("viewBox", "-8 -8 16 16");
    svg.setAttribute("aria-hidden", "true");
    use.setAttribute("href", "#mark-" + (series === null ? 3 : series % 6));
    svg.append(use);
    return svg;
  };

  // Marks search hits and characters that the page has spelled out; everything goes in as text.
  const fill = (element, text, words) => {
    const escaped = words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    const pattern = new RegExp(["⟨U\\+[0-9A-F]{4,6}⟩", ...escaped].join("|"), "giu");
    let from = 0;
    for (const found of text.matchAll(pattern)) {
      if (!found[0]) continue;
      element.append(text.slice(from, found.index));
      element.append(/^⟨U\+/.test(found[0]) ? make("span", "code", found[0]) : make("mark", "", found[0]));
      from = found.index + found[0].length;
    }
    element.append(text.slice(from));
    return element;
  };

  const paragraph = (text, words) => {
    const element = make("p", "text");
    element.dir = "auto";
    const parts = [element];
    if (text.length > CLAMP) {
      fill(element, text.slice(0, CLAMP) + " …", words);
      const button = make("button", "expand", "Show all " + text.length.toLocaleString("en") + " characters");
      button.type = "button";
      button.addEventListener("click", () => {
        element.replaceChildren();
        fill(element, text, words);
        button.remove();
        element.tabIndex = -1;
        element.focus();
      });
      parts.push(button);
    } else {
      fill(element, text, words);
    }
    return parts;
  };

  const replyCard = (arm, reply, words) => {
    const card = make("section", "reply");
    const heading = make("h4");
    heading.append(key(data.arms[arm].series), data.arms[arm].name);
    if (reply[3] !== null && reply[3] !== 0) {
      const above = reply[3] > 0;
      heading.append(make("span", "standing " + (above ? "above" : "below"), above ? "▲ above the teacher" : "▼ below the teacher"));
    }
    const foot = make("p", "small", reply[1] + " tokens");
    if (!reply[2]) foot.append(" · ", make("strong", "", "cut at the limit"));
    card.append(heading, ...paragraph(reply[0], words), foot);
    return card;
  };

  const promptCard = (prompt, decoding, words) => {
    const card = make("article", "prompt");
    const header = make("header");
    header.append(make("span", "badge", data.sets[prompt.set].name), fill(make("span", "mono"), prompt.id, words));
    if (prompt.margin !== null) header.append(make("span", "small", "margin " + prompt.margin.toFixed(2).replace("-", "−")));
    const turns = make("div", "turns");
    for (const [role, text] of prompt.turns) {
      const turn = make("div", "turn");
      const words_ = make("div");
      words_.append(...paragraph(text, words));
      turn.append(make("span", "role", role), words_);
      turns.append(turn);
    }
    const replies = make("div", "replies");
    data.arms.forEach((_, arm) => {
      const reply = replyOf(prompt, decoding, arm);
      if (shown[arm] && reply) replies.append(replyCard(arm, reply, words));
    });
    card.append(header, turns, replies);
    if (prompt.verdicts.length) {
      const details = make("details", "words");
      details.append(make("summary", "", "What the judges said (" + prompt.verdicts.length + ")"));
      for (const [judge, pair, preference, order, said] of prompt.verdicts) {
        const value = preference === null ? "no readable verdict" : "preference " + preference.toFixed(2);
        details.append(make("p", "role", judge + ", " + pair + ": " + value + " (" + order + ")"));
        if (said) details.append(...paragraph(said, words));
      }
      card.append(details);
    }
    return card;
  };

  // Two judges on opposite sides of one half about the same pair.
  const opposed = (prompt) => {
    const sides = new Map();
    for (const [judge, pair, preference] of prompt.verdicts) {
      if (preference === null || preference === 0.5) continue;
      const judges = sides.get(pair) ?? new Map();
      judges.set(judge, (judges.get(judge) ?? 0) + preference - 0.5);
      sides.set(pair, judges);
    }
    return [...sides.values()].some((judges) => {
      const values = [...judges.values()];
      return values.some((value) => value > 0) && values.some((value) => value < 0);
    });
  };

  const lowered = new Map();
  const haystack = (prompt, decoding) => {
    const name = decoding;
    let texts = lowered.get(prompt);
    if (!texts) lowered.set(prompt, (texts = new Map()));
    let text = texts.get(name);
    if (text === undefined) {
      const replies = data.arms.map((_, arm) => replyOf(prompt, decoding, arm)).filter((reply, arm) => reply && shown[arm]);
      const turns = prompt.turns.map((turn) => turn[1]);
      text = [prompt.id, ...turns, ...replies.map((reply) => reply[0])].join("\n").toLowerCase();
      texts.set(name, text);
    }
    return text;
  };

  const lengthRatio = (prompt, decoding) => {
    const reply = prompt.replies[decoding][data.headline];
    return reply && prompt.teacher ? reply[1] / Math.max(1, prompt.teacher[1]) : 0;
  };

  let page = 0;
  const refresh = () => {
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const set = byId("set").value;
    const decoding = Number(byId("decoding").value);
    const only = byId("only").value;
    let found = data.prompts.filter(
      (prompt) =>
        (set === "all" || prompt.set === Number(set)) &&
        (only !== "opposed" || opposed(prompt)) &&
        (only !== "cut" || data.arms.some((_, arm) => shown[arm] && replyOf(prompt, decoding, arm)?.[2] === 0)) &&
        words.every((word) => haystack(prompt, decoding).includes(word)),
    );
    const order = byId("order").value;
    if (order === "best" || order === "worst") {
      const sign = order === "best" ? -1 : 1;
      found = found.filter((prompt) => prompt.margin !== null).sort((a, b) => sign * (a.margin - b.margin));
    } else if (order === "long") {
      found.sort((a, b) => lengthRatio(b, decoding) - lengthRatio(a, decoding));
    }
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(page, pages - 1);
    const start = page * PAGE;
    byId("list").replaceChildren(...found.slice(start, start + PAGE).map((prompt) => promptCard(prompt, decoding, words)));
    byId("count").textContent = found.length
      ? "Prompts " + (start + 1) + " to " + Math.min(found.length, start + PAGE) + " of " + found.length
      : "No prompt matches.";
    byId("page").textContent = "Page " + (page + 1) + " of " + pages;
    byId("previous").disabled = page === 0;
    byId("next").disabled = page >= pages - 1;
    byId("pager").hidden = pages < 2;
  };

  const option = (value, text) => {
    const element = make("option", "", text);
    element.value = value;
    return element;
  };
  byId("set").append(option("all", "all sets"), ...data.sets.map((set, index) => option(String(index), set.name)));
  byId("decoding").append(...(data.decodings.length ? data.decodings : ["as drawn"]).map((name, index) => option(String(index), name)));
  data.arms.forEach((arm, index) => {
    const label = make("label");
    const box = make("input");
    box.type = "checkbox";
    box.checked = true;
    box.addEventListener("change", () => {
      shown[index] = box.checked;
      lowered.clear();
      refresh();
    });
    label.append(box, key(arm.series), arm.name);
    byId("arms").append(label);
  });
  if (!data.prompts.some((prompt) => prompt.margin !== null)) {
    for (const value of ["best", "worst"]) byId("order").querySelector("option[value=" + value + "]").disabled = true;
  }
  if (!data.prompts.some((prompt) => prompt.verdicts.length)) byId("only").querySelector("option[value=opposed]").disabled = true;

  let waiting = 0;
  const fromStart = () => {
    page = 0;
    refresh();
  };
  byId("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(fromStart, 150);
  });
  for (const id of ["set", "decoding", "order", "only"]) byId(id).addEventListener("change", fromStart);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  const turn = (by) => {
    page += by;
    refresh();
    byId("replies").scrollIntoView();
    const first = byId("list").querySelector("article");
    if (first) {
      first.tabIndex = -1;
      first.focus({ preventScroll: true });
    }
  };
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  byId("filters").hidden = false;
  refresh();
  document.documentElement.dataset.ready = "yes";
})();
