/* Two folders side by side: pairs in an order that one chooses, and one pair large, compared in four ways. */
"use strict";
(function () {
  const byId = (id) => document.getElementById(id);
  const dialog = byId("pair");
  const stage = byId("pair-stage");
  let overview = null;
  let pairs = null;
  let orders = [];
  let found = Promise.resolve([]);
  let asked = null;
  let turn = 0;
  let shown = null;
  let opened = false;

  /** The second image of pair i: a promise; of null where there is none. */
  async function partner(i) {
    const page = await hsd.load("partners-" + Math.floor(i / overview.page));
    const row = page[i % overview.page];
    if (!row) {
      return null;
    }
    const image = await hsd.images.get(i);
    const url = hsd.root.dataset.others + row[0];
    return {
      i: i, name: decodeURIComponent(row[0]), url: url, width: row[1], height: row[2], title: image.title,
      thumb: row[3] ? hsd.root.dataset.own + "thumbs/" + row[3] + ".webp" : url, colour: row[4],
      problem: row[5] || null,
    };
  }

  function makeOrders() {
    const known = (values) => (i) => values[i] !== null;
    orders = [
      { name: "folder", title: "As in the folder", value: null },
      { name: "differ", title: "Look most different", value: (i) => -pairs.differences[i],
        known: known(pairs.differences) },
    ];
    pairs.scores.forEach(function (scores) {
      const difference = scores.ours.map((ours, i) =>
        ours === null || scores.theirs[i] === null ? null : ours - scores.theirs[i]);
      scores.difference = difference;
      orders.push({ name: "loss." + scores.scorer, title: "A loses most (" + scores.scorer + ")",
        value: (i) => difference[i], known: known(difference) });
      orders.push({ name: "win." + scores.scorer, title: "A wins most (" + scores.scorer + ")",
        value: (i) => -difference[i], known: known(difference) });
    });
    byId("order").append(...orders.map((one) => hsd.make("option", { value: one.name }, one.title)));
  }

  function wanted() {
    const state = hsd.state();
    const order = orders.find((one) => one.name === state.get("order")) || orders[0];
    return { order: order, words: hsd.wordsOf(state.get("q") || "") };
  }

  async function search(order, words) {
    let numbers = pairs.paired.map((paired, i) => paired ? i : -1).filter((i) => i >= 0);
    if (words.length) {
      const images = await hsd.images.all();
      numbers = numbers.filter((i) => words.every((word) => images[i].lower.includes(word)));
    }
    if (order.value) {
      const rank = (i) => order.known(i) ? order.value(i) : Infinity; // without a score: last
      numbers.sort((a, b) => rank(a) === rank(b) ? a - b : rank(a) - rank(b));
    }
    return numbers;
  }

  function scoreTexts(i) {
    return pairs.scores.filter((one) => one.difference[i] !== null).map(function (one) {
      const difference = one.difference[i];
      const sign = Math.abs(difference) <= pairs.tolerance ? "tie" : difference > 0 ? "win" : "loss";
      const told = { tie: "tie", win: "A wins by ", loss: "A loses by " }[sign] +
        (sign === "tie" ? "" : String(Number(Math.abs(difference).toPrecision(3))));
      return { sign: sign, short: one.scorer + ": " + told,
        long: one.scorer + ": A " + one.ours[i] + ", B " + one.theirs[i] + " (" + told + ")" };
    });
  }

  function card(image, other, eager) {
    const scores = scoreTexts(image.i).map((one) => hsd.make("span", { class: "score " + one.sign }, one.short));
    return hsd.make("a", { class: "card", href: hsd.address({ pair: String(image.key) }),
      "data-key": String(image.key) },
      hsd.make("span", { class: "two-images" }, labelled(hsd.images.picture(image, eager), "A"),
        labelled(hsd.images.picture(other, eager), "B")),
      hsd.make("span", { class: "caption", "aria-hidden": "true", dir: "auto" }, image.title.slice(0, 200)),
      hsd.make("span", { class: "scores" }, ...scores));
  }

  function labelled(picture, side) {
    if (picture.alt !== undefined) {
      picture.alt = side + ": " + picture.alt;
    }
    return picture;
  }

  async function render() {
    const mine = ++turn;
    const { order, words } = wanted();
    const question = order.name + " " + words.join(" ");
    byId("order").value = order.name;
    if (document.activeElement !== byId("words")) {
      byId("words").value = hsd.state().get("q") || "";
    }
    if (question !== asked) {
      asked = question;
      found = search(order, words);
    }
    const numbers = await found;
    const size = Math.ceil(overview.page / 2); // as many images as a page of the gallery
    const pages = Math.max(1, Math.ceil(numbers.length / size));
    const page = Math.min(pages, Math.max(1, Number(hsd.state().get("page")) || 1)) - 1;
    const here = numbers.slice(page * size, (page + 1) * size);
    const both = await Promise.all(here.map((i) => Promise.all([hsd.images.get(i), partner(i)])));
    if (mine !== turn) {
      return;
    }
    const key = asked + " " + page;
    const grid = byId("pairs");
    if (grid.dataset.shown !== key) {
      grid.dataset.shown = key;
      grid.replaceChildren(...both.map(([image, other], at) => card(image, other, at < 6)));
    } else {
      Array.from(grid.children).forEach((one) => { one.href = hsd.address({ pair: one.dataset.key }); });
    }
    byId("nothing").hidden = numbers.length > 0;
    byId("status").textContent = hsd.count(numbers.length, "pair");
    hsd.pager(byId("pager"), page, pages);
  }

  // ------------------------------------------------------------------------------------------------ one pair

  function setMode(mode) {
    stage.dataset.mode = mode;
    stage.classList.remove("show-b");
    document.querySelectorAll("[data-mode][aria-pressed]").forEach((button) =>
      button.setAttribute("aria-pressed", String(button.dataset.mode === mode)));
    byId("pair-cut-field").hidden = mode !== "slider";
    byId("pair-blink").hidden = mode !== "blink";
    byId("pair-blink").textContent = "Show B";
  }

  function blink() {
    const second = stage.classList.toggle("show-b");
    byId("pair-blink").textContent = second ? "Show A" : "Show B";
  }

  function setImage(element, image, side) {
    element.removeAttribute("src");
    element.alt = side + ": " + (image.problem ? "cannot be shown: " + image.problem : image.title);
    if (!image.problem) {
      element.width = image.width;
      element.height = image.height;
      element.src = image.url;
    }
  }

  function show(image, other, numbers) {
    const place = numbers.indexOf(image.i);
    shown = image;
    setImage(byId("pair-a"), image, "A");
    setImage(byId("pair-b"), other, "B");
    stage.style.setProperty("--ratio", String(image.width / image.height || 1));
    byId("pair-text").textContent = image.title;
    const facts = scoreTexts(image.i).map((one) => one.long);
    if (image.seed !== null) {
      facts.unshift("seed " + image.seed);
    }
    byId("pair-facts").textContent = facts.join(" · ");
    byId("pair-previous").disabled = place <= 0;
    byId("pair-next").disabled = place < 0 || place >= numbers.length - 1;
    if (!dialog.open) {
      dialog.showModal();
      byId("pair-text").focus({ preventScroll: true });
    }
  }

  async function renderPair() {
    const text = hsd.state().get("pair");
    const i = text !== null && /^\d+$/.test(text) ? hsd.images.place(Number(text)) : -1;
    if (i < 0 || !pairs.paired[i]) {
      opened = false;
      if (dialog.open) {
        dialog.close();
        const link = shown && document.querySelector('.card[data-key="' + shown.key + '"]');
        if (link) {
          link.focus({ preventScroll: true });
          link.scrollIntoView({ block: "nearest" });
        }
      }
      shown = null;
      return;
    }
    show(await hsd.images.get(i), await partner(i), await found);
  }

  async function move(by) {
    const numbers = await found;
    const at = shown ? numbers.indexOf(shown.i) + by : -1;
    if (at >= 0 && at < numbers.length) {
      hsd.go({ pair: String(hsd.images.key(numbers[at])) }, true);
    }
  }

  function leave() {
    if (opened) {
      opened = false;
      history.back();
    } else {
      hsd.go({ pair: null }, true);
    }
  }

  function keyed(event) {
    if (!dialog.open || event.altKey || event.ctrlKey || event.metaKey) {
      return;
    }
    const modes = { 1: "side", 2: "slider", 3: "blink", 4: "difference" };
    const arrows = { ArrowLeft: -1, ArrowRight: 1 };
    if (event.key in modes) {
      setMode(modes[event.key]);
    } else if (event.key in arrows && event.target !== byId("pair-cut")) {
      event.preventDefault();
      move(arrows[event.key]);
    } else if (event.key === " " && stage.dataset.mode === "blink" && event.target.tagName !== "BUTTON") {
      event.preventDefault();
      blink();
    }
  }

  function listen() {
    byId("order").addEventListener("change", () => hsd.go({ order: byId("order").value, page: null }));
    byId("words").addEventListener("input",
      hsd.calmly(() => hsd.go({ q: byId("words").value, page: null }, true), 150));
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    document.querySelectorAll("[data-mode][aria-pressed]").forEach((button) =>
      button.addEventListener("click", () => setMode(button.dataset.mode)));
    byId("pair-cut").addEventListener("input", () => stage.style.setProperty("--cut", byId("pair-cut").value + "%"));
    byId("pair-blink").addEventListener("click", blink);
    byId("pair-previous").addEventListener("click", () => move(-1));
    byId("pair-next").addEventListener("click", () => move(1));
    byId("pair-close").addEventListener("click", leave);
    byId("pairs").addEventListener("click", (event) => { opened = !event.ctrlKey && !event.metaKey; });
    dialog.addEventListener("cancel", function (event) {
      event.preventDefault();
      leave();
    });
    document.addEventListener("keydown", keyed);
    window.addEventListener("hashchange", () => render().then(renderPair).catch(hsd.problem));
  }

  async function start() {
    overview = await hsd.load("overview");
    pairs = await hsd.load("pairs");
    hsd.images.prepare(byId("pairs"), overview);
    makeOrders();
    listen();
    await render();
    await renderPair();
  }

  start().catch(hsd.problem);
})();
