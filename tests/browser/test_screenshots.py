import itertools

from PIL import Image

from tests.browser.screenshots import take_screenshots


def test_each_page_is_shown_narrow_and_wide_light_and_dark(browser, tmp_path):
    folder, out = tmp_path / "site", tmp_path / "shots"
    folder.mkdir()
    style = "<style>@media (prefers-color-scheme: dark) { body { background: black; } }</style>"
    (folder / "tall.html").write_text(f'<!doctype html>{style}<p style="height: 9000px">')
    (folder / "low.html").write_text(f"<!doctype html>{style}<p>")
    taken = take_screenshots(browser, folder, out, height=1200)
    names = itertools.product(("low", "tall"), ("400", "1400"), ("light", "dark"))
    assert sorted(taken) == sorted(out.iterdir()) == sorted(out / f"{'-'.join(name)}.png" for name in names)
    for path in taken:
        page, width, scheme = path.stem.split("-")
        with Image.open(path) as picture:
            assert picture.width == int(width)
            assert picture.height == 1200 if page == "tall" else picture.height < 1200
            assert picture.convert("RGB").getpixel((0, 0)) == ((0, 0, 0) if scheme == "dark" else (255, 255, 255))
