/* The tree: bands over the steps. One cluster at a time is looked into; the address says which. */
"use strict";
(function () {
  const byId = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";
  const LOW = 1; // bands of fewer pixels are not drawn: what is behind them stands for them
  const FEW = 20; // of this many images or fewer, the pictures stand at the end of their bands
  const PICTURE = 34;
  let tree = null;
  let here = null; // the segment that is looked into; null: all images
  let listed = 24;
  let inside = []; // numbers of its images

  function svg(tag, attributes, text) {
    const element = document.createElementNS(SVG, tag);
    Object.keys(attributes).forEach((name) => element.setAttribute(name, attributes[name]));
    if (text !== undefined) {
      element.textContent = text;
    }
    return element;
  }

  function size(one) {
    return one.stop - one.begin;
  }

  function bounds() {
    return here ? [here.begin, here.stop] : [0, tree.order.length];
  }

  /** What a cluster is called: the prompt of its first image that is there. */
  function placesOf(one) {
    return tree.order.slice(one.begin, one.stop).map(hsd.images.place).filter((i) => i >= 0);
  }

  // ------------------------------------------------------------------------------------------------ the drawing

  function draw() {
    const drawing = byId("drawing");
    const [begin, stop] = bounds();
    const full = Math.max(280, drawing.parentElement.clientWidth);
    const few = stop - begin <= FEW;
    const width = few ? full - PICTURE - 6 : full;
    const height = few ? (stop - begin) * (PICTURE + 4) : Math.max(340, Math.min(600, window.innerHeight - 260));
    const foot = 22;
    const x = (step) => width * step / tree.steps;
    const y = (leaf) => height * (leaf - begin) / (stop - begin);
    const parts = [svg("title", { id: "drawing-text" }, "Clusters over the steps; the list below says the same")];
    parts.push(svg("rect", { class: "ground", x: 0, y: 0, width: width, height: height }));
    tree.segments.forEach(function (one) {
      if (one.stop <= begin || one.begin >= stop) {
        return;
      }
      const top = y(Math.max(one.begin, begin));
      const tall = y(Math.min(one.stop, stop)) - top;
      if (tall < (size(one) > 1 ? LOW : 2 * LOW)) {
        return;
      }
      const gap = Math.min(2, tall / 4);
      const group = svg("g", { class: (size(one) > 1 ? "band shared" : "band alone"), "data-id": one.id });
      group.append(svg("rect", {
        x: x(one.first) + 0.75, y: top + gap / 2, width: Math.max(0.5, x(one.end) - x(one.first) - 1.5),
        height: tall - gap, rx: Math.min(4, tall / 4),
        style: size(one) > 1 ? "--depth:" + Math.min(1, Math.log2(size(one)) / 6).toFixed(2) : "",
      }));
      if (tall > 15 && x(one.end) - x(one.first) > 46 && size(one) > 1) {
        group.append(svg("text", { x: x(one.first) + 8, y: top + tall / 2 + 4 }, "× " + hsd.number(size(one))));
      }
      group.append(svg("title", {}, hsd.count(size(one), "image") + ", steps " + (one.first + 1) + " to " + one.end));
      parts.push(group);
    });
    const wanted = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((apart) => x(apart) > 56) || tree.steps;
    for (let step = 0; step <= tree.steps; step += wanted) {
      const anchor = step === 0 ? "start" : step === tree.steps ? "end" : "middle";
      parts.push(svg("text", { class: "tick", x: x(step), y: height + 16, "text-anchor": anchor },
        step === 0 ? "step 0" : String(step)));
    }
    drawing.setAttribute("viewBox", "0 0 " + full + " " + (height + foot));
    drawing.setAttribute("height", String(height + foot));
    drawing.replaceChildren(...parts);
    if (few) {
      pictures(drawing, begin, stop, width + 6, y).catch(hsd.problem);
    }
  }

  /** The pictures of a few images, each at the end of its band. */
  async function pictures(drawing, begin, stop, left, y) {
    const numbers = tree.order.slice(begin, stop).map(hsd.images.place);
    const images = await Promise.all(numbers.map((i) => i < 0 ? null : hsd.images.get(i)));
    if (begin !== bounds()[0] || stop !== bounds()[1]) {
      return; // another cluster is shown meanwhile
    }
    images.forEach(function (image, at) {
      if (image && !image.problem) {
        const element = svg("image", { href: image.thumb, x: left, y: y(begin + at) + 2, width: PICTURE,
          height: PICTURE, preserveAspectRatio: "xMidYMid slice", "data-key": image.key });
        element.append(svg("title", {}, image.title.slice(0, 300)));
        drawing.append(element);
      }
    });
  }

  function choose(id) {
    hsd.go({ segment: id === null ? null : String(id), image: null });
  }

  // ------------------------------------------------------------------------------------------------ the cluster

  function crumbs() {
    const chain = [];
    for (let one = here; one; one = one.parent < 0 ? null : tree.segments[one.parent]) {
      chain.unshift(one);
    }
    const item = (one, last) => hsd.make("li", {}, hsd.make("a", {
      href: hsd.address({ segment: one ? String(one.id) : null, image: null }), "aria-current": last ? "true" : null,
    }, one ? hsd.count(size(one), "image") + ", to step " + one.end : "All images"));
    byId("crumbs").replaceChildren(item(null, !here), ...chain.map((one) => item(one, one === here)));
  }

  function story() {
    if (!here) {
      const shared = tree.roots.filter((one) => size(one) > 1).length;
      return hsd.count(shared, "cluster") + " share the first step" +
        (shared < tree.roots.length ? "; " + hsd.count(tree.roots.length - shared, "image") + " shared nothing" : "") +
        ".";
    }
    const steps = "steps " + (here.first + 1) + " to " + here.end;
    if (size(here) === 1) {
      return "This image ran alone in " + steps + ".";
    }
    return "Its images were one latent in " + steps + (here.children.length
      ? ". Then it split into " + hsd.count(here.children.length, "part") + "." : ", and to the end.");
  }

  async function entry(one) {
    const places = placesOf(one);
    const first = places.length ? await hsd.images.get(places[0]) : null;
    const fork = tree.forks[one.id];
    const picture = fork
      ? hsd.make("img", { src: hsd.root.dataset.images + fork, alt: "", loading: "lazy", width: 64, height: 64 })
      : first ? hsd.images.picture(first, false) : hsd.make("span", { class: "broken" });
    if (picture.alt) {
      picture.alt = ""; // the text beside it says the same
    }
    const until = one.children.length ? "one latent until step " + one.end
      : size(one) > 1 ? "one latent to the end" : "alone from step " + (one.first + 1) + " on";
    // Of one image there is nothing inside to look at but the image.
    const inside = size(one) === 1 && first ? { image: String(first.key) } : { segment: String(one.id), image: null };
    return hsd.make("li", {}, hsd.make("a", { href: hsd.address(inside) }, picture,
      hsd.make("span", { class: "about" },
        hsd.make("strong", {}, hsd.count(size(one), "image")),
        hsd.make("span", { class: "muted" }, until + (fork ? "; the picture is where it was heading" : "")),
        hsd.make("span", { class: "caption", dir: "auto" }, first ? first.title.slice(0, 160) : "not made yet"))));
  }

  async function cluster() {
    const mine = here;
    const [begin, stop] = bounds();
    byId("cluster-title").textContent = here ? "A cluster of " + hsd.count(size(here), "image") : "All clusters";
    byId("cluster-story").textContent = story();
    const fork = here ? tree.forks[here.id] : undefined;
    byId("cluster-fork").hidden = !fork;
    if (fork) {
      byId("fork-image").src = hsd.root.dataset.images + fork;
      byId("fork-image").alt = "What the cluster was heading for at step " + here.end;
    }
    const children = here ? here.children : tree.roots.slice().sort((a, b) => size(b) - size(a) || a.begin - b.begin);
    const items = await Promise.all(children.slice(0, listed).map(entry));
    inside = placesOf({ begin: begin, stop: stop });
    const most = 48;
    const images = await Promise.all(inside.slice(0, most).map(hsd.images.get));
    if (mine !== here) {
      return;
    }
    byId("clusters").replaceChildren(...items);
    byId("more-clusters").hidden = children.length <= listed;
    const missing = stop - begin - inside.length;
    byId("images-title").textContent = "Images" + (missing ? " (" + hsd.number(missing) + " not made yet)" : "");
    byId("grid").replaceChildren(...images.map((image) => hsd.images.tile(image, false)));
    byId("all-images").hidden = inside.length <= most;
    byId("all-images").textContent = "Show all " + hsd.number(inside.length) + " in the gallery";
    byId("all-images").href = "../report.html" + (here ? "#cluster=" + begin + "-" + stop : "");
  }

  async function render() {
    const id = Number(hsd.state().get("segment") || NaN);
    const next = Number.isInteger(id) && tree.segments[id] ? tree.segments[id] : null;
    if (next === here && byId("crumbs").children.length) {
      return; // an image was opened or closed
    }
    here = next;
    listed = 24;
    crumbs();
    draw();
    await cluster();
  }

  async function start() {
    hsd.images.prepare(byId("grid"), await hsd.load("overview"));
    tree = await hsd.cluster.tree();
    byId("drawing").addEventListener("click", function (event) {
      if (event.target.dataset.key) {
        hsd.go({ image: event.target.dataset.key });
        return;
      }
      const band = event.target.closest(".band");
      if (band) {
        const id = Number(band.dataset.id);
        choose(here && here.id === id ? (here.parent < 0 ? null : here.parent) : id);
      }
    });
    byId("more-clusters").addEventListener("click", function () {
      listed += 48;
      cluster().catch(hsd.problem);
    });
    window.addEventListener("hashchange", () => render().catch(hsd.problem));
    window.addEventListener("resize", hsd.calmly(draw, 100));
    await render();
    await hsd.detail.start(() => Promise.resolve(inside));
  }

  start().catch(hsd.problem);
})();
