"""samples.py: where a dataset's files are looked for, and what is said where there are none."""

import pytest

from recbole_llm.data.reading.interactions import Source, load
from recbole_llm.data.sample.locate import locate
from recbole_llm.errors import UserError
from recbole_llm.settings import files


@pytest.fixture
def put(tmp_path):
    """put(folder, file) below data_path, which it returns."""

    def put(folder, name):
        path = tmp_path / "data" / folder
        path.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("user_id:token\titem_id:token\nu\ta\n")
        return tmp_path / "data"

    return put


def test_the_users_files_come_before_the_bundled_ones(put, tmp_path):
    assert locate("Pet", tmp_path) == ("Pet-sample", files.SAMPLE) == locate("Pet-sample", tmp_path)
    name, folder = locate("ml-100k", tmp_path)
    assert name == "ml-100k" and (folder / "ml-100k.inter").is_file()
    for name in ("Pet", "ml-100k"):
        data = put(name, f"{name}.inter")
        assert locate(name, data) == (name, data / name)


@pytest.mark.parametrize("file", ["other.inter", "other.train.inter"])
def test_files_by_another_name(put, file):
    data = put("shop", file)
    assert locate("shop", data, "other") == ("shop", data / "shop")
    with pytest.raises(
        UserError, match=r"dataset 'shop': expected \S+/shop/shop.inter, found there: shop; "
    ):
        locate("shop", data)
    with pytest.raises(
        UserError, match=r"dataset 'Pet': expected \S+/Pet/other.inter"
    ):  # the sample has no such files
        locate("Pet", data, "other")
    with pytest.raises(UserError, match=r"dataset 'ml-100k': expected \S+/ml-100k/other.inter"):
        locate("ml-100k", data, "other")


@pytest.mark.parametrize("name", ["ä*", "a[b]", "a?", "*", "[!x]"])
def test_signs_of_a_pattern_are_letters(put, name):
    data = put("ax", "ax.inter")
    with pytest.raises(UserError, match="^dataset .*: expected .*found there: ax; [^\\n]*$"):
        locate(name, data)
    put("ax", f"{name}.inter")
    assert locate("ax", data, name) == ("ax", data / "ax")
    assert len(load(Source(data / "ax", name)).users) == 1


@pytest.mark.parametrize("name", ["/tmp/x", "../data/ax", "..", ".", "", "a\\b"])
def test_a_name_is_no_path(put, name):
    data = put("ax", "ax.inter")
    with pytest.raises(
        UserError, match="^dataset .*: expected the name of a folder below data_path"
    ):
        locate(name, data)
    with pytest.raises(UserError, match="^data_name .*: expected the name"):
        locate("ax", data, name)


def test_five_names_of_what_is_there(put):
    for number in range(9, 0, -1):
        data = put(f"d{number}", f"d{number}.inter")
    with pytest.raises(UserError, match="found there: d1, d2, d3, d4, d5, …; make it"):
        locate("none", data)
    with pytest.raises(UserError, match="nothing is there; make it"):
        locate("none", data / "d1")
