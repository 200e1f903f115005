"use strict";
(async () => {
  const byId = (id) => document.getElementById(id);
  const packed = byId("packed");
  const letters = atob(packed.textContent);
  const bytes = new Uint8Array(letters.length);
  for (let index = 0; index < letters.length; index++) bytes[index] = letters.charCodeAt(index);
  packed.remove();
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const boot = JSON.parse(await new Response(stream).text());

  // A store answers load, vote and undo with {done, total, comparison, last}; `last` is what undo would take back.
  const serverStore = () => {
    const token = new URLSearchParams(location.search).get("token") ?? "";
    const ask = async (path, body) => {
      const answer = await fetch(path, {
        method: body ? "POST" : "GET",
        headers: { "X-Gad-Token": token, ...(body ? { "Content-Type": "application/json" } : {}) },
        body: body ? JSON.stringify(body) : undefined,
        cache: "no-store",
      });
      const value = await answer.json();
      if (!answer.ok) throw new Error(value.error ?? "the server refused");
      return value;
    };
    return {
      load: () => ask("state"),
      vote: (comparison, choice) => ask("vote", { comparison, choice }),
      undo: (comparison) => ask("undo", { comparison }),
    };
  };

  const sheetStore = () => {
    const key = "gad-arena-" + boot.sheet;
    let kept = { rater: "", votes: [] };
    let safe = true;
    try {
      kept = JSON.parse(localStorage.getItem(key)) ?? kept;
    } catch {
      safe = false;
    }
    const keep = () => {
      try {
        localStorage.setItem(key, JSON.stringify(kept));
      } catch {
        safe = false;
      }
    };
    const state = () => {
      const done = new Set(kept.votes.map((vote) => vote.comparison));
      return {
        done: done.size,
        total: boot.comparisons.length,
        comparison: boot.comparisons.find((one) => !done.has(one.id)) ?? null,
        last: kept.votes.at(-1)?.comparison ?? null,
      };
    };
    return {
      get rater() {
        return kept.rater;
      },
      set rater(name) {
        kept.rater = name;
        keep();
      },
      get safe() {
        return safe;
      },
      file: () => ({ format: 1, kind: "gad-arena-votes", run: boot.run, sheet: boot.sheet, rater: kept.rater, votes: kept.votes }),
      load: async () => state(),
      vote: async (comparison, choice) => {
        if (!kept.votes.some((vote) => vote.comparison === comparison)) {
          kept.votes.push({ comparison, choice, created: Date.now() / 1000 });
          keep();
        }
        return state();
      },
      undo: async (comparison) => {
        if (kept.votes.at(-1)?.comparison === comparison) {
          kept.votes.pop();
          keep();
        }
        return state();
      },
    };
  };

  const sheet = boot.sheet ? sheetStore() : null;
  const store = sheet ?? serverStore();
  let state = null;
  let busy = false;

  const marked = (element, text) => {
    element.replaceChildren();
    let from = 0;
    for (const found of text.matchAll(/⟨U\+[0-9A-F]{4,6}⟩/g)) {
      const code = document.createElement("span");
      code.className = "code";
      code.textContent = found[0];
      element.append(text.slice(from, found.index), code);
      from = found.index + found[0].length;
    }
    element.append(text.slice(from));
    return element;
  };

  const show = () => {
    const comparison = state.comparison;
    byId("where").textContent = state.done + " of " + state.total;
    byId("progress").max = Math.max(1, state.total);
    byId("progress").value = state.done;
    byId("comparison").hidden = comparison === null;
    byId("done").hidden = comparison !== null;
    byId("votes").hidden = false;
    for (const button of document.querySelectorAll("[data-choice]")) button.disabled = comparison === null;
    byId("undo").disabled = state.last === null;
    if (comparison) {
      byId("turns").replaceChildren(
        ...comparison.turns.map(([role, text]) => {
          const turn = document.createElement("div");
          const name = document.createElement("span");
          const words = document.createElement("p");
          turn.className = "turn";
          name.className = "role";
          name.textContent = role;
          words.className = "text";
          words.dir = "auto";
          turn.append(name, marked(words, text));
          return turn;
        }),
      );
      for (const side of ["left", "right"]) {
        marked(byId(side), comparison[side]).scrollTop = 0;
      }
    } else {
      byId("after").textContent = sheet
        ? "Press “Save votes” and send the file back to whoever sent you this page."
        : "Every vote is saved. You can close this page.";
    }
    document.documentElement.dataset.comparison = comparison ? comparison.id : "none";
  };

  const say = (text) => (byId("status").textContent = text);
  const problem = (text) => {
    byId("problem").hidden = !text;
    byId("problem").textContent = text;
  };

  const act = async (what, said) => {
    if (busy) return;
    busy = true;
    try {
      state = await what();
      problem(sheet && !sheet.safe ? "This browser keeps nothing between visits: save your votes before you close the page." : "");
      show();
      window.scrollTo(0, 0);
      say(said());
    } catch (error) {
      problem("Not saved: " + error.message + ". Is the server running? Try again; nothing counts twice.");
    } finally {
      busy = false;
    }
  };

  const words = { left: "A is better", right: "B is better", tie: "Tie", both_bad: "Both bad", skip: "Skipped" };
  const vote = (choice) => {
    const comparison = state?.comparison;
    if (comparison) act(() => store.vote(comparison.id, choice), () => "Saved: " + words[choice] + ".");
  };
  const undo = () => {
    const last = state?.last;
    if (last) act(() => store.undo(last), () => "Taken back.");
  };

  for (const button of document.querySelectorAll("[data-choice]")) button.addEventListener("click", () => vote(button.dataset.choice));
  byId("undo").addEventListener("click", undo);
  const keys = { ArrowLeft: "left", 1: "left", ArrowRight: "right", 2: "right", t: "tie", 3: "tie", b: "both_bad", 4: "both_bad", s: "skip", 5: "skip" };
  document.addEventListener("keydown", (event) => {
    const typing = event.target instanceof HTMLInputElement;
    if (typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey || !state) return;
    const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (name === "u" || name === "Backspace") {
      event.preventDefault();
      undo();
    } else if (Object.hasOwn(keys, name)) {
      event.preventDefault();
      vote(keys[name]);
    }
  });

  const begin = () => act(() => store.load(), () => "");
  if (!sheet) {
    await begin();
    if (!state) setTimeout(begin, 1000);
  } else {
    byId("save").hidden = false;
    byId("save").addEventListener("click", () => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([JSON.stringify(sheet.file(), null, 1)], { type: "application/json" }));
      link.download = "votes-" + sheet.rater.replace(/[^A-Za-z0-9_-]+/g, "-") + ".json";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
      say("Votes saved as a file.");
    });
    if (sheet.rater) await begin();
    else {
      byId("who").hidden = false;
      byId("name").focus();
      byId("who").addEventListener("submit", (event) => {
        event.preventDefault();
        sheet.rater = byId("name").value.trim();
        document.activeElement?.blur();
        byId("who").hidden = true;
        begin();
      });
    }
  }
  document.documentElement.dataset.ready = "yes";
})();
