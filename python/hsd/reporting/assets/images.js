/* The images of the folder: read page by page, as they are needed. */
"use strict";
hsd.images = (function () {
  const pages = new Map();
  const places = new Map();

  function about() {
    return hsd.images.overview;
  }

  /** Image number i by what the address knows it by: its index where images have one. */
  function key(i) {
    const keys = about().keys;
    return keys ? keys[i] : i;
  }

  /** The number of the image with a key; -1 if there is none. */
  function place(wanted) {
    const keys = about().keys;
    if (!keys) {
      return Number.isInteger(wanted) && wanted >= 0 && wanted < about().images ? wanted : -1;
    }
    if (!places.size) {
      keys.forEach((value, i) => places.set(value, i));
    }
    return places.has(wanted) ? places.get(wanted) : -1;
  }

  function read(page, data) {
    const begin = page * about().page;
    return data.rows.map(function (row, offset) {
      const name = decodeURIComponent(row[0]);
      const text = data.texts[row[1]];
      const thumbnail = row[5] ? hsd.root.dataset.own + "thumbs/" + row[5] + ".webp" : null;
      const url = hsd.root.dataset.images + row[0];
      const failed = typeof row[10] === "string";
      return {
        i: begin + offset, key: key(begin + offset), name: name, url: url, text: text, title: text || name,
        seed: row[2], width: row[3], height: row[4], thumb: thumbnail || url, colour: row[6], alone: row[7],
        settings: about().settings[row[8]], codes: row[9], problem: failed ? row[10] : null, nsfw: row[10] === 1,
        lower: (text || name).toLowerCase(),
      };
    });
  }

  /** The images of a page of the folder: a promise. */
  function page(number) {
    if (!pages.has(number)) {
      pages.set(number, hsd.load("images-" + number).then((data) => read(number, data)));
    }
    return pages.get(number);
  }

  /** Image number i: a promise. */
  function get(i) {
    return page(Math.floor(i / about().page)).then((images) => images[i % about().page]);
  }

  /** All images: a promise. */
  function all() {
    const numbers = Array.from({ length: Math.ceil(about().images / about().page) }, (_, number) => number);
    return Promise.all(numbers.map(page)).then((found) => [].concat(...found));
  }

  /** The value of a column for people. */
  function value(image, column) {
    const code = image.codes[column];
    return typeof code === "number" ? about().columns[column].values[code] : code;
  }

  /** The img element of an image, or what stands for one that cannot be shown. */
  function picture(image, eager) {
    if (image.problem) {
      return hsd.make("span", { class: "broken", role: "img", "aria-label": "Damaged: " + image.title },
        hsd.make("span", { "aria-hidden": "true" }, "damaged"));
    }
    const img = hsd.make("img", {
      src: image.thumb, alt: image.title, width: image.width, height: image.height, decoding: "async",
      loading: eager ? null : "lazy",
    });
    img.style.backgroundColor = "#" + image.colour; // until it is there
    img.addEventListener("load", () => { img.style.backgroundColor = ""; });
    return img;
  }

  /** A tile that opens an image. */
  function tile(image, eager) {
    const number = String(image.key) + (image.seed === null ? "" : " · seed " + image.seed); // images of one prompt differ
    return hsd.make("a", {
      class: "tile", href: hsd.address({ image: String(image.key) }), "data-key": String(image.key),
      title: image.title.length > 300 ? image.title.slice(0, 300) + "…" : image.title,
    }, picture(image, eager), hsd.make("span", { class: "caption", "aria-hidden": "true", dir: "auto" },
      image.title.slice(0, 200)), hsd.make("span", { class: "number", "aria-hidden": "true" }, number));
  }

  /** Set how tiles look: all images of one shape are shown whole, others in squares. */
  function prepare(element, overview) {
    hsd.images.overview = overview;
    element.style.setProperty("--ratio", overview.ratio ? String(overview.ratio) : "1");
    hsd.root.classList.toggle("tiny", overview.small);
  }

  return { page, get, all, key, place, value, picture, tile, prepare, overview: null };
})();
