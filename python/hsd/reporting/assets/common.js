/* What all pages use: data files, the state in the address, and making elements. No text ever becomes HTML. */
"use strict";
const hsd = (function () {
  const root = document.documentElement;
  const values = new Map();
  const loading = new Map();

  /** Called by the files in data/. */
  function put(name, value) {
    values.set(name, value);
  }

  /** The value of a data file, loaded at most once: a promise. */
  function load(name) {
    if (values.has(name)) {
      return Promise.resolve(values.get(name));
    }
    if (!loading.has(name)) {
      loading.set(name, new Promise(function (resolve, reject) {
        const script = document.createElement("script");
        script.src = root.dataset.own + "data/" + name + ".js";
        script.onload = () => resolve(values.get(name));
        script.onerror = () => reject(new Error(name + ".js is missing: make the report again"));
        document.head.append(script);
      }));
    }
    return loading.get(name);
  }

  /** The state: names and texts after the # of the address. */
  function state() {
    return new URLSearchParams(location.hash.slice(1));
  }

  function address(changes) {
    const next = state();
    Object.keys(changes).forEach(function (name) {
      const value = changes[name];
      if (value === null || value === "") {
        next.delete(name);
      } else {
        next.set(name, value);
      }
    });
    return "#" + next.toString();
  }

  /** Change the state; null removes. Goes back to the state before by the browser's button, unless `quietly`. */
  function go(changes, quietly) {
    const target = address(changes);
    if (target === location.hash || (target === "#" && !location.hash)) {
      return;
    }
    if (quietly) {
      location.replace(target);
    } else {
      location.hash = target;
    }
  }

  /** An element with attributes and children; texts are text. */
  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    Object.keys(attributes || {}).forEach(function (name) {
      const value = attributes[name];
      if (value !== null && value !== undefined && value !== false) {
        element.setAttribute(name, value === true ? "" : value);
      }
    });
    element.append(...children.filter((child) => child !== null));
    return element;
  }

  function number(value) {
    return value.toLocaleString("en");
  }

  /** "1 image", "12 images". */
  function count(value, noun) {
    return number(value) + " " + noun + (value === 1 ? "" : "s");
  }

  /** Words that all have to be in a text, in lower case. */
  function wordsOf(text) {
    return text.toLowerCase().split(/\s+/).filter(Boolean);
  }

  /** A function that runs when nothing happened for some milliseconds. */
  function calmly(work, wait) {
    let timer = 0;
    return function () {
      clearTimeout(timer);
      timer = setTimeout(work, wait);
    };
  }

  /** Links to pages around the present one. `page` begins with 0. */
  function pager(nav, page, pages) {
    nav.hidden = pages < 2;
    if (nav.hidden) {
      nav.replaceChildren();
      return;
    }
    const link = function (target, text, label) {
      const there = target >= 0 && target < pages;
      const href = there ? address({ page: target ? String(target + 1) : null }) : null;
      return make("a", {
        href: href, "aria-label": label, "aria-current": target === page && !label ? "page" : null,
        "aria-disabled": there ? null : "true",
      }, text);
    };
    const near = new Set([0, pages - 1]);
    for (let other = page - 2; other <= page + 2; other++) {
      if (other >= 0 && other < pages) {
        near.add(other);
      }
    }
    const items = [link(page - 1, "←", "Previous page")];
    let last = -1;
    Array.from(near).sort((a, b) => a - b).forEach(function (other) {
      if (other > last + 1) {
        items.push(make("span", { class: "muted" }, "…"));
      }
      items.push(link(other, number(other + 1), null));
      last = other;
    });
    items.push(link(page + 1, "→", "Next page"));
    nav.replaceChildren(...items);
  }

  function problem(error) {
    const status = document.getElementById("status");
    if (status) {
      status.textContent = error.message;
    }
    throw error;
  }

  return { put, load, state, address, go, make, number, count, wordsOf, calmly, pager, problem, root };
})();
