/* The gallery: filters over all images, one page of them at a time. */
"use strict";
(function () {
  const byId = (id) => document.getElementById(id);
  const grid = byId("grid");
  const selects = [];
  let overview = null;
  let found = Promise.resolve({ numbers: [], left: null }); // what the filters leave
  let asked = null; // by which filters
  let counted = null; // by which filters the choices are counted
  let turn = 0;

  function filters() {
    const state = hsd.state();
    const columns = {};
    overview.columns.forEach(function (column, at) {
      const value = state.get("c." + column.name);
      if (value !== null) {
        columns[at] = value;
      }
    });
    const cluster = /^(\d+)-(\d+)$/.exec(state.get("cluster") || "");
    return {
      words: hsd.wordsOf(state.get("q") || ""), seed: state.get("seed"), columns: columns,
      cluster: cluster ? [Number(cluster[1]), Number(cluster[2])] : null,
    };
  }

  function isOff(wanted) {
    return !wanted.words.length && wanted.seed === null && !Object.keys(wanted.columns).length && !wanted.cluster;
  }

  function matchesColumn(image, at, value) {
    return overview.columns[at].values ? hsd.images.value(image, at) === value
      : hsd.images.value(image, at).toLowerCase().includes(value.toLowerCase());
  }

  /** Whether an image passes; `but` is the column that is not asked. */
  function passes(image, wanted, members, but) {
    return wanted.words.every((word) => image.lower.includes(word)) &&
      (wanted.seed === null || String(image.seed) === wanted.seed.trim()) &&
      (!members || members.has(image.key)) &&
      Object.keys(wanted.columns).every((at) => Number(at) === but || matchesColumn(image, at, wanted.columns[at]));
  }

  async function membersOf(cluster) {
    const tree = cluster ? await hsd.cluster.tree() : null;
    return tree ? new Set(tree.order.slice(cluster[0], cluster[1])) : null;
  }

  /** The numbers of the images that pass, and the images that would pass without asking one column. */
  async function search(wanted) {
    if (isOff(wanted)) {
      return { numbers: Array.from({ length: overview.images }, (_, i) => i), left: null };
    }
    const [images, members] = await Promise.all([hsd.images.all(), membersOf(wanted.cluster)]);
    return {
      numbers: images.filter((image) => passes(image, wanted, members, -1)).map((image) => image.i),
      left: (at) => images.filter((image) => passes(image, wanted, members, at)),
    };
  }

  /** How many images each choice of a column would leave. */
  function counts(left) {
    selects.forEach(function (select) {
      const column = overview.columns[select.at];
      let numbers = column.counts;
      if (left) {
        numbers = new Array(column.values.length).fill(0);
        left(select.at).forEach((image) => { numbers[image.codes[select.at]] += 1; });
      }
      Array.from(select.element.options).slice(1).forEach(function (option, code) {
        option.textContent = column.values[code] + " (" + hsd.number(numbers[code]) + ")";
      });
    });
  }

  function controls() {
    const state = hsd.state();
    const set = function (element, value) {
      if (document.activeElement !== element) {
        element.value = value;
      }
    };
    set(byId("words"), state.get("q") || "");
    set(byId("seed"), state.get("seed") || "");
    overview.columns.forEach((column, at) => set(byId("column-" + at), state.get("c." + column.name) || ""));
    const cluster = filters().cluster;
    byId("cluster").hidden = !cluster;
    byId("cluster").textContent = cluster ? "A cluster of " + hsd.count(cluster[1] - cluster[0], "image") + " ✕" : "";
    byId("clear").hidden = isOff(filters());
  }

  async function render() {
    const mine = ++turn;
    const wanted = filters();
    const question = JSON.stringify(wanted);
    controls();
    if (question !== asked) {
      asked = question;
      found = search(wanted);
    }
    const { numbers, left } = await found;
    const pages = Math.max(1, Math.ceil(numbers.length / overview.page));
    const page = Math.min(pages, Math.max(1, Number(hsd.state().get("page")) || 1)) - 1;
    const here = numbers.slice(page * overview.page, (page + 1) * overview.page);
    const images = await Promise.all(here.map(hsd.images.get));
    if (mine !== turn) {
      return; // a later one draws
    }
    if (question !== counted) {
      counted = question;
      counts(left);
    }
    const key = asked + page;
    if (grid.dataset.shown !== key) { // opening an image changes the address too
      const turned = Boolean(grid.dataset.shown);
      grid.dataset.shown = key;
      grid.replaceChildren(...images.map((image, at) => hsd.images.tile(image, at < 12)));
      if (turned && window.scrollY > grid.offsetTop) {
        byId("status").scrollIntoView();
      }
    } else { // only the links, which carry the state
      Array.from(grid.children).forEach((tile) => { tile.href = hsd.address({ image: tile.dataset.key }); });
    }
    byId("nothing").hidden = numbers.length > 0;
    byId("status").textContent = numbers.length === overview.images ? hsd.count(numbers.length, "image")
      : hsd.number(numbers.length) + " of " + hsd.count(overview.images, "image");
    hsd.pager(byId("pager"), page, pages);
  }

  function changed(name, value) {
    hsd.go({ [name]: value, page: null, image: null }, true);
  }

  function makeColumns() {
    overview.columns.forEach(function (column, at) {
      const id = "column-" + at;
      let input;
      if (column.values) {
        input = hsd.make("select", { id: id }, hsd.make("option", { value: "" }, "any"),
          ...column.values.map((value) => hsd.make("option", { value: value })));
        selects.push({ element: input, at: at });
      } else {
        input = hsd.make("input", { id: id, type: "search", autocomplete: "off", placeholder: "part of it" });
      }
      const listen = () => changed("c." + column.name, input.value);
      input.addEventListener(column.values ? "change" : "input", column.values ? listen : hsd.calmly(listen, 200));
      byId("columns").append(hsd.make("label", { class: "field" }, hsd.make("span", { dir: "auto" }, column.name),
        input));
    });
    counts(null);
  }

  function clear() {
    const nothing = { q: null, seed: null, page: null, image: null, cluster: null };
    overview.columns.forEach((column) => { nothing["c." + column.name] = null; });
    hsd.go(nothing);
    byId("words").value = byId("seed").value = "";
    byId("words").focus();
  }

  function listen() {
    byId("words").addEventListener("input", hsd.calmly(() => changed("q", byId("words").value), 150));
    byId("seed").addEventListener("input", hsd.calmly(() => changed("seed", byId("seed").value.trim()), 150));
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    byId("clear").addEventListener("click", clear);
    byId("clear-2").addEventListener("click", clear);
    byId("cluster").addEventListener("click", () => changed("cluster", null));
    byId("tile").addEventListener("input", () => grid.style.setProperty("--tile", byId("tile").value + "px"));
    window.addEventListener("hashchange", () => render().catch(hsd.problem));
  }

  async function start() {
    overview = await hsd.load("overview");
    hsd.images.prepare(grid, overview);
    makeColumns();
    listen();
    await render();
    performance.mark("hsd-shown");
    await hsd.detail.start(() => found.then((one) => one.numbers));
  }

  start().catch(hsd.problem);
})();
