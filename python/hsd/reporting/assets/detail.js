/* One image, large, with all that is known of it. The page gives the order for "previous" and "next". */
"use strict";
hsd.detail = (function () {
  const byId = (id) => document.getElementById(id);
  const dialog = byId("detail");
  let order = () => Promise.resolve([]); // numbers of the images in the order of the page
  let shown = null;
  let opened = false; // whether the page before this address is the one without the image

  function wanted() {
    const text = hsd.state().get("image");
    return text === null || !/^\d+$/.test(text) ? -1 : hsd.images.place(Number(text));
  }

  function leave() {
    if (opened) {
      opened = false;
      history.back();
    } else {
      hsd.go({ image: null }, true);
    }
  }

  function row(name, value) {
    return [hsd.make("dt", {}, name), hsd.make("dd", { dir: "auto" }, value)];
  }

  function facts(image) {
    const about = hsd.images.overview;
    const rows = [];
    if (image.seed !== null) {
      rows.push(...row("Seed", String(image.seed)));
    }
    rows.push(...row("File", image.name));
    if (image.width) {
      rows.push(...row("Size", image.width + " × " + image.height));
    }
    about.columns.forEach(function (column, at) {
      const value = hsd.images.value(image, at);
      if (value !== "(none)") {
        rows.push(...row(column.name, value));
      }
    });
    Object.keys(image.settings).forEach((name) => rows.push(...row(name, image.settings[name])));
    if (image.nsfw) {
      rows.push(...row("Safety checker", "made it black"));
    }
    return rows;
  }

  function bar(parts, steps) {
    return parts.map(function (part) {
      const element = hsd.make("span", { class: part.others ? "shared" : "alone" });
      element.style.flexGrow = String((part.end - part.first) / steps);
      element.append(part.end - part.first > steps / 8 ? (part.others ? "× " + (part.others + 1) : "alone") : "");
      element.title = "steps " + (part.first + 1) + " to " + part.end;
      return element;
    });
  }

  /** The clusters of an image, cut where the run set it apart earlier than the plan says. */
  function partsOf(found, at, alone) {
    const parts = [];
    hsd.cluster.path(found, at).forEach(function (one) {
      const end = alone === null ? one.end : Math.min(one.end, Math.max(one.first, alone));
      const others = one.stop - one.begin - 1;
      if (others && end > one.first) {
        parts.push({ first: one.first, end: end, others: others });
      }
    });
    const last = parts.length ? parts[parts.length - 1].end : 0;
    if (last < found.steps) {
      parts.push({ first: last, end: found.steps, others: 0 });
    }
    return parts;
  }

  function story(parts, steps) {
    const shared = parts.filter((part) => part.others);
    if (!shared.length) {
      return "This image shared nothing.";
    }
    const cost = parts.reduce((sum, part) => sum + (part.end - part.first) / (part.others + 1), 0);
    const told = shared.map((part) => "steps " + (part.first + 1) + "–" + part.end + " with " +
      hsd.count(part.others, "other image"));
    const last = shared[shared.length - 1].end;
    return "Shared " + told.join(", ") + ". " + (last < steps ? "Alone from step " + (last + 1) + " on. " : "") +
      "Its part of the evaluations is " + cost.toFixed(1) + " instead of " + steps + ".";
  }

  async function relatives(found, at, image) {
    const near = hsd.cluster.relatives(found, at, 8, image.alone === null ? found.steps : image.alone);
    const here = near.filter((one) => hsd.images.place(one.index) >= 0);
    const images = await Promise.all(here.map((one) => hsd.images.get(hsd.images.place(one.index))));
    return images.map((other, i) => hsd.make("li", {}, hsd.make("a", {
      href: hsd.address({ image: String(other.key) }), class: "relative", title: other.title,
    }, hsd.images.picture(other, true), hsd.make("span", {}, hsd.count(here[i].steps, "step")))));
  }

  async function sharing(image) {
    const section = byId("detail-shared");
    const found = await hsd.cluster.tree();
    const at = found ? found.place.get(image.key) : undefined;
    section.hidden = at === undefined;
    if (at === undefined || shown !== image) {
      return;
    }
    const parts = partsOf(found, at, image.alone);
    byId("detail-steps").replaceChildren(...bar(parts, found.steps));
    byId("detail-story").textContent = story(parts, found.steps);
    const items = await relatives(found, at, image);
    if (shown === image) {
      byId("detail-near").hidden = !items.length;
      byId("detail-relatives").replaceChildren(...items);
    }
  }

  function show(image, place, numbers) {
    shown = image;
    const picture = byId("detail-image");
    picture.removeAttribute("src"); // not the image before, while this one loads
    picture.hidden = Boolean(image.problem);
    byId("detail-problem").hidden = !image.problem;
    byId("detail-problem").textContent = image.problem ? "This image cannot be shown: " + image.problem : "";
    if (!image.problem) {
      picture.alt = image.title;
      picture.width = image.width;
      picture.height = image.height;
      picture.style.setProperty("--ratio", String(image.width / image.height));
      // A tiny image is not blown up over the whole screen.
      picture.style.setProperty("--most", Math.max(512, 2 * image.width) + "px");
      picture.style.backgroundColor = "#" + image.colour;
      picture.src = image.url;
    }
    byId("detail-text").textContent = image.title;
    byId("detail-copy").hidden = !image.text;
    byId("detail-copy").textContent = "Copy prompt";
    byId("detail-file").href = image.url;
    byId("detail-list").replaceChildren(...facts(image));
    byId("detail-place").textContent = place < 0 ? "" : hsd.number(place + 1) + " of " + hsd.number(numbers.length);
    byId("detail-previous").disabled = place <= 0;
    byId("detail-next").disabled = place < 0 || place >= numbers.length - 1;
    byId("detail-facts").scrollTop = 0;
    if (!dialog.open) {
      dialog.showModal();
      byId("detail-facts").focus({ preventScroll: true });
    }
    sharing(image).catch(hsd.problem);
  }

  async function render() {
    const i = wanted();
    if (i < 0) {
      const last = shown;
      shown = null;
      opened = false;
      if (dialog.open) {
        dialog.close();
        const tile = last && document.querySelector('.tile[data-key="' + last.key + '"]');
        if (tile) {
          tile.focus({ preventScroll: true });
          tile.scrollIntoView({ block: "nearest" });
        }
      }
      return;
    }
    const [image, numbers] = await Promise.all([hsd.images.get(i), order()]);
    if (wanted() === i) {
      show(image, numbers.indexOf(i), numbers);
    }
  }

  async function move(by) {
    const numbers = await order();
    const at = shown ? numbers.indexOf(shown.i) : -1;
    if (at >= 0 && at + by >= 0 && at + by < numbers.length) {
      hsd.go({ image: String(hsd.images.key(numbers[at + by])) }, true);
    }
  }

  async function copy() {
    const button = byId("detail-copy");
    try {
      await navigator.clipboard.writeText(shown.text);
    } catch (error) { // pages on a disk may not use the clipboard in every browser
      const area = hsd.make("textarea", { "aria-hidden": "true" });
      area.value = shown.text;
      byId("detail-facts").append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    button.textContent = "Copied";
  }

  function start(numbers) {
    order = numbers;
    byId("detail-close").addEventListener("click", leave);
    byId("detail-previous").addEventListener("click", () => move(-1));
    byId("detail-next").addEventListener("click", () => move(1));
    byId("detail-copy").addEventListener("click", copy);
    dialog.addEventListener("cancel", function (event) {
      event.preventDefault();
      leave();
    });
    dialog.addEventListener("click", function (event) {
      if (event.target === dialog) { // the backdrop
        leave();
      }
    });
    document.addEventListener("click", function (event) {
      if (event.target.closest && event.target.closest(".tile") && !event.ctrlKey && !event.metaKey) {
        opened = true;
      }
    });
    document.addEventListener("keydown", function (event) {
      const arrows = { ArrowLeft: -1, ArrowRight: 1 };
      if (dialog.open && event.key in arrows && !event.altKey && !event.ctrlKey && !event.metaKey) {
        event.preventDefault();
        move(arrows[event.key]);
      }
    });
    window.addEventListener("hashchange", () => render().catch(hsd.problem));
    return render();
  }

  return { start, render };
})();
