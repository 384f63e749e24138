"""The pages of ``hsd.report`` in headless Chromium: real clicks and keys, from ``file://``."""

from __future__ import annotations

import json

import PIL.Image
import pytest

import hsd
from browser import browser_page, launched
from report_cases import AWKWARD, HOSTILE, prompts_of, write_folder, write_forks

MANY = 5000


@pytest.fixture(scope="session")
def browser():
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Twelve images that share, with pictures of forks, beside twelve that do not; both with scores."""
    from evaluate_cases import Brightness, measured

    root = tmp_path_factory.mktemp("report")
    plan = write_folder(root / "shared", 12, side=48)
    write_forks(root / "shared", plan)
    write_folder(root / "standard", 12, side=48, tau=0.0, shift=40)
    measured(root / "shared", Brightness(), against=root / "standard")
    return hsd.report(root / "shared", root / "standard"), plan


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    prompts = [*prompts_of(MANY - 1), "the needle"]
    plan = write_folder(folder, prompts=prompts, side=2, tau=2.0)
    return hsd.report(folder), plan


def tiles(page):
    return page.locator("#grid .tile")


def status(page):
    return page.locator("#status").inner_text()


def shown(page, name):
    """Open a page beside the first one."""
    page.locator("nav.pages").get_by_role("link", name=name).click()


# ------------------------------------------------------------------------------- the gallery


def test_five_thousand_images_open_as_fast_as_few(browser, many):
    """One page is there; the rest is read when it is asked for."""
    with browser_page(browser) as page:
        page.goto(many[0].as_uri())
        page.locator("#grid .tile").first.wait_for()
        assert tiles(page).count() == 500
        assert status(page) == "5,000 images"
        assert tiles(page).nth(2).locator(".number").inner_text() == "2 · seed 102"  # images of one prompt differ by it
        scripts = page.evaluate("Array.from(document.scripts).map((one) => one.src.split('/').pop())")
        assert "images-0.js" in scripts
        assert "images-1.js" not in scripts
        page.get_by_role("link", name="Next page").press("Enter")  # no picture that loads can move it away
        page.wait_for_function("document.querySelector('.tile').dataset.key === '500'")
        page.locator("#pager").get_by_role("link", name="10", exact=True).press("Enter")
        page.wait_for_function("document.querySelector('.tile').dataset.key === '4500'")
        assert page.locator("#pager [aria-current=page]").inner_text() == "10"
        page.go_back()
        page.go_back()
        page.wait_for_function("document.querySelector('.tile').dataset.key === '0'")


def test_filters_ask_all_images(browser, many):
    with browser_page(browser) as page:
        page.goto(many[0].as_uri())
        page.get_by_label("Words in the prompt").fill("NEEDLE the")
        page.wait_for_function("document.querySelectorAll('.tile').length === 1")
        assert status(page) == "1 of 5,000 images"
        assert tiles(page).first.get_attribute("data-key") == "4999"
        page.get_by_label("Words in the prompt").fill("ink")
        page.wait_for_function("document.querySelectorAll('.tile').length === 500")
        assert status(page) == "1,666 of 5,000 images"
        page.get_by_role("link", name="Next page").press("Enter")
        page.wait_for_function("location.hash.includes('page=2')")
        page.get_by_label("Seed").fill("4201")  # in oil: seeds begin with 100
        page.wait_for_function("document.querySelectorAll('.tile').length === 0")
        assert page.get_by_text("No image has all of this").is_visible()
        page.get_by_label("Words in the prompt").fill("")
        page.wait_for_function("document.querySelectorAll('.tile').length === 1")
        assert tiles(page).first.get_attribute("data-key") == "4101"
        page.get_by_role("button", name="Clear filters").first.click()
        page.wait_for_function("document.querySelectorAll('.tile').length === 500")


def test_a_column_is_chosen_with_counts(browser, shared):
    first, _ = shared
    with browser_page(browser) as page:
        page.goto(first.as_uri())
        style = page.get_by_label("style")
        assert style.locator("option").all_inner_texts() == ["any", "ink (4)", "oil (4)", "watercolour (4)"]
        style.select_option("oil")
        page.wait_for_function("document.querySelectorAll('.tile').length === 4")
        assert all("oil" in title for title in page.locator(".tile img").evaluate_all("all => all.map(i => i.alt)"))
        animals = page.get_by_label("animal").locator("option").all_inner_texts()
        assert animals == ["any", "0 (1)", "1 (1)", "2 (1)", "3 (1)"]  # of those in oil
        page.get_by_label("animal").select_option("2")
        page.wait_for_function("document.querySelectorAll('.tile').length === 1")
        assert style.locator("option").all_inner_texts()[1:] == ["ink (1)", "oil (1)", "watercolour (1)"]


def test_a_late_search_does_not_count(browser, shared):
    """Filters that were cleared while the pages of images load leave no trace in the choices."""
    with browser_page(browser) as page:
        page.goto(shared[0].as_uri())
        tiles(page).first.wait_for()
        page.evaluate("""() => {
          const all = hsd.images.all;
          hsd.images.all = () => new Promise((done) => { window.letGo = () => all().then(done); });
        }""")
        style = page.get_by_label("style")
        style.select_option("oil")
        page.wait_for_function("Boolean(window.letGo)")  # a function would be called
        style.select_option("")
        page.wait_for_function("document.getElementById('clear').hidden")  # the later search has begun
        page.evaluate("async () => { await window.letGo(); await new Promise((done) => setTimeout(done, 50)); }")
        animals = page.get_by_label("animal").locator("option").all_inner_texts()
        assert animals == ["any", "0 (3)", "1 (3)", "2 (3)", "3 (3)"]


def test_a_column_of_many_values_is_searched(browser, tmp_path):
    write_folder(tmp_path, 30, columns=False)
    lines = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    lines = [json.dumps({**line, "sku": f"Item-{line['index']}"}) for line in lines]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    with browser_page(browser) as page:
        page.goto(hsd.report(tmp_path).as_uri())
        page.get_by_label("sku").fill("item-2")
        page.wait_for_function("document.querySelectorAll('.tile').length === 11")  # 2 and 20 to 29
        tiles(page).nth(1).click()
        page.get_by_role("dialog").get_by_text("Item-20", exact=True).wait_for()


def test_the_address_holds_the_state(browser, shared):
    """A link can be sent: another browser shows the same."""
    first, _ = shared
    with browser_page(browser) as page:
        page.goto(first.as_uri())
        page.get_by_label("style").select_option("oil")
        page.get_by_label("Words in the prompt").fill("animal")
        page.wait_for_function("location.hash.includes('q=animal')")
        tiles(page).nth(1).click()
        page.get_by_role("dialog").wait_for()
        address = page.url
    with browser_page(browser) as page:
        page.goto(address)
        page.get_by_role("dialog").wait_for()
        assert page.locator("#detail-text").inner_text() == "a oil painting of animal 1"
        assert page.locator("#detail-place").inner_text() == "2 of 4"
        assert page.get_by_label("Words in the prompt").input_value() == "animal"
        page.keyboard.press("Escape")
        page.wait_for_function("!document.getElementById('detail').open")
        assert tiles(page).count() == 4


def test_one_image_and_its_neighbours_by_keyboard(browser, shared):
    first, plan = shared
    with browser_page(browser) as page:
        page.goto(first.as_uri())
        tiles(page).nth(3).focus()
        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog")
        dialog.wait_for()
        assert dialog.get_by_role("heading", level=2).inner_text() == plan.prompts[3]
        facts = page.locator("#detail-list").inner_text()
        assert "103" in facts
        assert "00003.png" in facts
        assert "48 × 48" in facts
        page.wait_for_function("document.getElementById('detail-image').naturalWidth === 48")
        for key, text in (("ArrowRight", "5 of 12"), ("ArrowRight", "6 of 12"), ("ArrowLeft", "5 of 12")):
            page.keyboard.press(key)
            page.wait_for_function(f"document.getElementById('detail-place').textContent === '{text}'")
        page.keyboard.press("Escape")
        page.wait_for_function("!document.getElementById('detail').open")
        assert page.evaluate("document.activeElement.dataset.key") == "4"
        assert "image" not in page.url
        page.go_forward()
        dialog.wait_for()
        page.go_back()
        page.wait_for_function("!document.getElementById('detail').open")


def test_buttons_at_both_ends(browser, shared):
    first, _ = shared
    with browser_page(browser) as page:
        page.goto(first.as_uri() + "#image=0")
        dialog = page.get_by_role("dialog")
        assert dialog.get_by_role("button", name="Previous image").is_disabled()
        dialog.get_by_role("button", name="Next image").click()
        page.wait_for_function("document.getElementById('detail-place').textContent === '2 of 12'")
        page.goto(first.as_uri() + "#image=11")
        page.wait_for_function("document.getElementById('detail-next').disabled")
        dialog.get_by_role("button", name="Close").click()
        page.wait_for_function("!document.getElementById('detail').open")


def test_what_an_image_shared(browser, shared):
    """The text and the relatives, compared with the plan's own clusters."""
    first, plan = shared
    active = [plan.active(k) for k in range(plan.n_steps)]
    image = max(range(12), key=lambda i: sum((row == row[i]).sum() > 1 for row in active))
    others = [int((row == row[image]).sum()) - 1 for row in active]
    steps = {j: sum(int(row[j] == row[image]) for row in active) for j in range(12) if j != image}
    with browser_page(browser) as page:
        page.goto(first.as_uri() + f"#image={image}")
        page.locator("#detail-relatives li").first.wait_for()
        story = page.locator("#detail-story").inner_text()
        assert f"steps 1–{others.count(others[0])} with {others[0]} other image" in story
        cost = sum(1 / (n + 1) for n in others)
        assert f"Its part of the evaluations is {cost:.1f} instead of {plan.n_steps}" in story
        found = page.locator("#detail-relatives a").evaluate_all(
            "all => all.map(a => [Number(new URLSearchParams(a.hash.slice(1)).get('image')), parseInt(a.innerText)])"
        )
        assert found == sorted(found, key=lambda one: -one[1])
        assert dict(found) == {j: n for j, n in steps.items() if n}
        page.locator("#detail-relatives a").first.click()
        page.wait_for_function(
            f"document.getElementById('detail-text').textContent !== {json.dumps(plan.prompts[image])}"
        )


def test_copying_a_prompt(browser, shared):
    first, plan = shared
    with browser_page(browser, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.goto(first.as_uri() + "#image=2")
        page.get_by_role("button", name="Copy prompt").click()
        page.get_by_role("button", name="Copied").wait_for()
        page.keyboard.press("Escape")
        page.wait_for_function("!document.getElementById('detail').open")
        page.get_by_label("Words in the prompt").focus()
        page.keyboard.press("Control+v")
        assert page.get_by_label("Words in the prompt").input_value() == plan.prompts[2]


def test_hostile_text_is_shown_as_text(browser, tmp_path):
    texts = [text for text in HOSTILE if "\ud83d" not in text]
    with open(tmp_path / "metadata.jsonl", "w") as metadata:
        for i, text in enumerate(texts):
            PIL.Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
            metadata.write(json.dumps({"file_name": f"{i}.png", "text": text, "index": i, "remark": text}) + "\n")
    first = hsd.report(tmp_path)
    with browser_page(browser) as page:  # fails if a dialog opens or a script fails
        page.goto(first.as_uri())
        tiles(page).first.wait_for()
        assert page.locator(".tile img").evaluate_all("all => all.map(i => i.alt)") == texts
        for i, text in enumerate(texts):
            page.goto(first.as_uri() + f"#image={i}")
            page.wait_for_function(f"document.getElementById('detail-text').textContent === {json.dumps(text)}")
            page.keyboard.press("Escape")
            page.wait_for_function("!document.getElementById('detail').open")
            page.get_by_label("remark").select_option(text)
            page.wait_for_function("document.querySelectorAll('.tile').length === 1")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("name", [*AWKWARD[:6], "%41 ’“"])
def test_images_are_found_in_every_folder(browser, tmp_path, name):
    folder, other = tmp_path / name, tmp_path / f"b {name}"
    for one in (folder, other):
        one.mkdir()
        PIL.Image.new("RGB", (300, 200), "teal").save(one / f"{name}.png")
    first = hsd.report(folder, other)
    with browser_page(browser) as page:  # fails if a request fails
        page.goto(first.as_uri() + "#image=0")
        page.wait_for_function("document.querySelector('.tile img').naturalWidth === 256")
        page.wait_for_function("document.getElementById('detail-image').naturalWidth === 300")
        page.keyboard.press("Escape")
        shown(page, "Side by side")
        page.wait_for_function(
            "Array.from(document.querySelectorAll('.card img')).every((i) => i.naturalWidth === 256)"
        )
        page.locator(".card").click()
        page.wait_for_function("document.getElementById('pair-b').naturalWidth === 300")


def test_a_damaged_image_is_told(browser, tmp_path):
    write_folder(tmp_path, 3)
    (tmp_path / "00001.png").write_bytes(b"no image")
    with browser_page(browser) as page:
        page.goto(hsd.report(tmp_path).as_uri())
        page.get_by_role("img", name="Damaged: a watercolour painting of animal 0").wait_for()
        assert tiles(page).count() == 3
        tiles(page).nth(1).click()
        page.get_by_text("This image cannot be shown: this is not an image").wait_for()


# ------------------------------------------------------------------------------- two folders


def test_side_by_side(browser, shared):
    first, plan = shared
    with browser_page(browser) as page:
        page.goto(first.as_uri())
        shown(page, "Side by side")
        cards = page.locator(".card")
        cards.first.wait_for()
        assert cards.count() == 12
        page.get_by_label("Order").select_option(label="A loses most (brightness)")
        page.wait_for_function("location.hash.includes('order=loss.brightness')")
        page.wait_for_function("document.querySelector('.card .score').textContent.includes('loses')")
        lost = cards.locator(".score").all_inner_texts()
        amounts = [float(text.split()[-1]) for text in lost if "loses" in text]
        assert amounts == sorted(amounts, reverse=True)
        assert len(amounts) > 1
        page.get_by_label("Order").select_option(label="A wins most (brightness)")
        page.wait_for_function("document.querySelector('.card .score').textContent.includes('wins')")
        page.get_by_label("Words in the prompt").fill("ink")
        page.wait_for_function("document.querySelectorAll('.card').length === 4")
        assert status(page) == "4 pairs"
        keys = cards.evaluate_all("all => all.map(a => Number(a.dataset.key))")
        cards.nth(1).click()
        page.get_by_role("dialog").wait_for()
        assert page.locator("#pair-text").inner_text() == plan.prompts[keys[1]]
        page.keyboard.press("ArrowRight")
        page.wait_for_function(
            f"document.getElementById('pair-text').textContent === {json.dumps(plan.prompts[keys[2]])}"
        )


def test_ways_to_compare_a_pair(browser, shared):
    first, _ = shared
    folder = first.parent
    with browser_page(browser) as page:
        page.goto((folder / "__report__" / "compare.html").as_uri() + "#pair=3")
        page.get_by_role("dialog").wait_for()
        a, b = page.locator("#pair-a"), page.locator("#pair-b")
        page.wait_for_function("document.getElementById('pair-b').naturalWidth === 48")
        assert a.get_attribute("src").endswith("00003.png")
        assert "/standard/" in b.evaluate("i => i.src")
        assert a.bounding_box()["x"] < b.bounding_box()["x"]
        page.get_by_role("button", name="Slider").click()
        assert a.bounding_box()["x"] == b.bounding_box()["x"]
        page.get_by_label("Where A ends").fill("30")
        assert b.evaluate("i => getComputedStyle(i).clipPath") == "inset(0px 0px 0px 30%)"
        page.keyboard.press("3")
        assert a.is_visible()
        assert not b.is_visible()
        page.locator("#pair-text").click()
        page.keyboard.press("Space")
        assert b.is_visible()
        assert not a.is_visible()
        page.keyboard.press("4")
        mode = page.locator("#pair-stage .second").evaluate("i => getComputedStyle(i).mixBlendMode")
        assert mode == "difference"
        page.keyboard.press("Escape")
        page.wait_for_function("!document.getElementById('pair').open")


# ------------------------------------------------------------------------------- the tree


def test_the_tree_opens_to_its_images(browser, shared):
    first, plan = shared
    roots = [segment for segment in plan.segments if segment["parent"] < 0]
    largest = max(roots, key=lambda one: one["leaf_end"] - one["leaf_begin"])
    size = int(largest["leaf_end"] - largest["leaf_begin"])
    number = next(i for i, one in enumerate(plan.segments) if one == largest)
    children = [i for i, one in enumerate(plan.segments) if one["parent"] == number]
    members = set(plan.tree.leaf_order[largest["leaf_begin"] : largest["leaf_end"]].tolist())
    with browser_page(browser) as page:
        page.goto(first.as_uri())
        shown(page, "Tree")
        page.locator(".clusters a").first.wait_for()
        assert page.locator(".clusters a").count() == len(roots)
        assert tiles(page).count() == 12
        page.locator(f'.band[data-id="{number}"]').click()
        page.wait_for_function(f"document.querySelectorAll('#grid .tile').length === {size}")
        assert page.locator("#cluster-title").inner_text() == f"A cluster of {size} images"
        assert f"one latent in steps 1 to {largest['end_step']}" in page.locator("#cluster-story").inner_text()
        assert {int(key) for key in tiles(page).evaluate_all("all => all.map(a => a.dataset.key)")} == members
        assert page.locator(".clusters a").count() == len(children)
        page.wait_for_function("document.getElementById('fork-image').naturalWidth === 32")
        page.locator(".clusters a").first.focus()
        page.keyboard.press("Enter")
        page.wait_for_function("location.hash !== '' && document.querySelectorAll('.crumbs li').length >= 2")
        page.go_back()
        page.wait_for_function(f"document.getElementById('cluster-title').textContent === 'A cluster of {size} images'")
        page.go_back()
        page.wait_for_function("document.getElementById('cluster-title').textContent === 'All clusters'")
        page.go_forward()
        page.wait_for_function("document.getElementById('cluster-title').textContent !== 'All clusters'")
        tiles(page).first.click()
        page.get_by_role("dialog").wait_for()
        page.keyboard.press("Escape")
        page.get_by_role("link", name="All images").click()
        page.wait_for_function("document.getElementById('cluster-title').textContent === 'All clusters'")


def test_the_tree_of_many(browser, many):
    """It stays readable: few bands are drawn, few clusters listed; the gallery shows all images of one."""
    first, plan = many
    with browser_page(browser) as page:
        page.goto((first.parent / "__report__" / "tree.html").as_uri())
        page.locator(".clusters a").first.wait_for()
        assert page.locator(".band").count() < 3000
        assert page.locator(".clusters a").count() == 24
        page.get_by_role("button", name="Show more clusters").click()
        page.wait_for_function("document.querySelectorAll('.clusters li').length === 72")
        sizes = plan.segments["leaf_end"] - plan.segments["leaf_begin"]
        big = next(i for i, one in enumerate(plan.segments) if one["parent"] < 0 and sizes[i] > 48)
        page.goto((first.parent / "__report__" / "tree.html").as_uri() + f"#segment={big}")
        page.get_by_role("link", name=f"Show all {sizes[big]:,} in the gallery").click()
        page.wait_for_function("document.querySelector('#cluster') && !document.querySelector('#cluster').hidden")
        page.wait_for_function(f"document.getElementById('status').textContent.startsWith('{sizes[big]:,} of')")


def test_the_tree_of_an_unfinished_folder(browser, tmp_path):
    write_folder(tmp_path, 12, made=[0, 1, 2, 7])
    first = hsd.report(tmp_path)
    with browser_page(browser) as page:
        page.goto((first.parent / "__report__" / "tree.html").as_uri())
        page.get_by_role("heading", name="Images (8 not made yet)").wait_for()
        assert tiles(page).count() == 4
        assert page.get_by_text("not made yet").count() > 1
        page.goto(first.as_uri() + "#image=7")  # the index, not the place in the folder
        page.wait_for_function("document.getElementById('detail-text').textContent.endsWith('painting of animal 2')")


# ------------------------------------------------------------------------------- for everyone

PAGES = ["report.html", "__report__/compare.html", "__report__/tree.html", "__report__/run.html"]

CHECKS = """() => {
  const wrong = [];
  const visible = (e) => e.getClientRects().length > 0;
  const name = (e) => (e.getAttribute('aria-label') || (e.labels && e.labels[0] && e.labels[0].innerText) ||
    e.innerText || (e.querySelector('img') && e.querySelector('img').alt) || '').trim();
  document.querySelectorAll('img').forEach((e) =>
    visible(e) && e.getAttribute('alt') === null && wrong.push(e.outerHTML));
  document.querySelectorAll('a, button, input, select, summary').forEach((e) =>
    visible(e) && !name(e) && wrong.push('no name: ' + e.outerHTML));
  document.querySelectorAll('svg').forEach((e) => visible(e) && e.getAttribute('aria-hidden') !== 'true' &&
    !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby')) && wrong.push('svg: ' + e.id));
  const ids = Array.from(document.querySelectorAll('[id]')).map((e) => e.id);
  ids.filter((id, i) => ids.indexOf(id) !== i).forEach((id) => wrong.push('two of ' + id));
  document.querySelectorAll('[aria-labelledby]').forEach((e) =>
    document.getElementById(e.getAttribute('aria-labelledby')) || wrong.push('no label ' + e.outerHTML));
  ['main', 'header', 'nav', 'h1'].forEach((tag) => document.querySelector(tag) || wrong.push('no ' + tag));
  if (document.querySelectorAll('h1, main').length !== 2) wrong.push('more than one h1 or main');
  let level = 1;
  document.querySelectorAll('h1, h2, h3').forEach((e) => {
    if (!visible(e)) return;
    if (Number(e.tagName[1]) > level + 1) wrong.push('skipped a level: ' + e.innerText);
    level = Number(e.tagName[1]);
  });
  if (!document.documentElement.lang) wrong.push('no language');
  return wrong;
}"""

CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length && c[3] !== 0) return c;
    }
    return [255, 255, 255];
  };
  const low = new Set();
  document.querySelectorAll('body *').forEach((e) => {
    const text = Array.from(e.childNodes).some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!text || !e.getClientRects().length || e.closest('svg, .skip, [disabled], [aria-disabled], option')) return;
    const a = light(parse(getComputedStyle(e).color).slice(0, 3)), b = light(ground(e).slice(0, 3));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.add(e.tagName + '.' + e.className + ' ' + ratio.toFixed(2) + ' ' + e.innerText.slice(0, 30));
  });
  return Array.from(low);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_everyone_can_read_it(browser, shared, name, scheme):
    """Names, landmarks, headings and contrast; and on a phone nothing is wider than the screen."""
    url = (shared[0].parent / name).as_uri()
    states = {"report.html": "#image=3", "__report__/compare.html": "#pair=3"}
    with browser_page(browser, color_scheme=scheme, viewport={"width": 360, "height": 740}) as page:
        for state in ("", *([states[name]] if name in states else [])):
            page.goto(url + state)
            if name != "__report__/run.html":
                page.locator(".tile, .card").first.wait_for()
            for details in page.locator("details").all():
                details.evaluate("e => { e.open = true }")
            assert page.evaluate("document.documentElement.scrollWidth") <= 360
            assert page.evaluate(CHECKS) == []
            assert page.evaluate(CONTRAST) == []


def test_the_checks_can_fail(browser, shared):
    with browser_page(browser) as page:
        page.goto(shared[0].as_uri())
        tiles(page).first.wait_for()
        page.evaluate("""() => {
          const add = (html) => document.querySelector('main').insertAdjacentHTML('beforeend', html);
          add('<button></button><img src="data:,"><p style="color:#aaa;background:#fff">pale</p>');
        }""")
        assert len(page.evaluate(CHECKS)) == 2
        assert len(page.evaluate(CONTRAST)) == 1


def test_the_switch_between_light_and_dark(browser, shared):
    ground = "getComputedStyle(document.body.parentElement).backgroundColor"
    with browser_page(browser, color_scheme="light") as page:
        page.goto(shared[0].as_uri())
        light = page.evaluate(ground)
        page.get_by_role("button", name="Dark colours").click()
        dark = page.evaluate(ground)
        assert dark != light
        assert page.get_by_role("button", name="Dark colours").get_attribute("aria-pressed") == "true"
        shown(page, "Run")
        page.wait_for_url("**/run.html")
        assert page.evaluate(ground) == dark
    with browser_page(browser, color_scheme="dark") as page:
        page.goto(shared[0].as_uri())
        assert page.evaluate(ground) == dark


def test_nothing_jumps(browser, tmp_path):
    """Images have their places before they are there."""
    write_folder(tmp_path, 40, side=300)
    with browser_page(browser) as page:
        page.add_init_script("""
          window.shifts = 0;
          new PerformanceObserver((list) => list.getEntries().forEach((one) => { window.shifts += one.value; }))
            .observe({ type: 'layout-shift', buffered: true });
        """)
        page.goto(hsd.report(tmp_path).as_uri())
        page.wait_for_function("Array.from(document.images).slice(0, 12).every((i) => i.naturalWidth)")
        assert page.evaluate("window.shifts") < 0.02
        assert page.locator('.tile img[width="300"][height="300"]').count() == 40
        assert page.evaluate("document.querySelectorAll('.tile img[loading=lazy][decoding=async]').length") == 28


def test_no_page_needs_motion_and_paper_shows_images(browser, shared):
    with browser_page(browser, reduced_motion="reduce") as page:
        page.goto(shared[0].as_uri())
        tiles(page).first.wait_for()
        durations = "Array.from(document.querySelectorAll('*')).map((e) => getComputedStyle(e).transitionDuration)"
        assert set(page.evaluate(durations)) == {"0s"}
        page.emulate_media(media="print")
        assert not page.get_by_label("Words in the prompt").is_visible()
        assert tiles(page).first.is_visible()
