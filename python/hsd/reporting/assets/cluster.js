/* The tree of what was shared, for questions about one image or one cluster. */
"use strict";
hsd.cluster = (function () {
  let promise = null;

  function build(data) {
    const table = data.segments;
    const segments = [];
    for (let at = 0; at < table.length; at += 5) {
      segments.push({
        id: segments.length, parent: table[at], first: table[at + 1], end: table[at + 2],
        begin: table[at + 3], stop: table[at + 4], children: [],
      });
    }
    const roots = segments.filter((one) => one.parent < 0);
    segments.filter((one) => one.parent >= 0).forEach((one) => segments[one.parent].children.push(one));
    segments.concat({ children: roots }).forEach((one) => one.children.sort((a, b) => a.begin - b.begin));
    roots.sort((a, b) => a.begin - b.begin);
    const leaf = new Array(data.order.length).fill(null);
    const shared = new Array(data.order.length).fill(0); // steps that a leaf shares with the next one
    segments.forEach(function (one) {
      if (!one.children.length) {
        leaf.fill(one, one.begin, one.stop);
        shared.fill(one.end, one.begin, one.stop - 1);
      }
      one.children.slice(1).forEach((child) => { shared[child.begin - 1] = one.end; });
    });
    const place = new Map(data.order.map((index, at) => [index, at]));
    return { steps: data.steps, order: data.order, forks: data.forks, segments, roots, leaf, shared, place };
  }

  /** The tree: a promise; of null where the report has none. */
  function tree() {
    if (!promise) {
      const grid = document.getElementById("grid");
      promise = grid.dataset.tree === "0" ? Promise.resolve(null) : hsd.load("tree").then(build);
    }
    return promise;
  }

  /** The clusters that an image was in, from the first step on. */
  function path(found, at) {
    const out = [];
    for (let one = found.leaf[at]; one; one = one.parent < 0 ? null : found.segments[one.parent]) {
      out.unshift(one);
    }
    return out;
  }

  /** The images that shared the most steps with one: their index and how many steps, the most first. */
  function relatives(found, at, most, before) {
    const out = [];
    let low = at, high = at, left = Infinity, right = Infinity;
    while (out.length < most) {
      const down = low > 0 ? Math.min(left, found.shared[low - 1]) : 0;
      const up = high < found.order.length - 1 ? Math.min(right, found.shared[high]) : 0;
      const steps = Math.max(down, up);
      if (steps <= 0) {
        break;
      }
      if (down >= up) {
        low -= 1;
        left = down;
      } else {
        high += 1;
        right = up;
      }
      const other = down >= up ? low : high;
      out.push({ index: found.order[other], steps: Math.min(steps, before) });
    }
    return out.filter((one) => one.steps > 0);
  }

  return { tree, path, relatives };
})();
