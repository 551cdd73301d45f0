"""Lists that come with data sets: labels, splits, and what is refused (UCF-101, ImageNet, Kinetics)."""

import pytest

from videogen.data import lists
from videogen.data.lists import Entry, read_classes
from videogen.errors import UserError

# Folder names sorted by code point exchange both pairs against classInd.txt.
LINES = (
    "ApplyEyeMakeup ApplyLipstick Archery BabyCrawling BalanceBeam BandMarching BaseballPitch Basketball",
    "BasketballDunk BenchPress Biking Billiards BlowDryHair BlowingCandles BodyWeightSquats Bowling",
    "BoxingPunchingBag BoxingSpeedBag BreastStroke BrushingTeeth CleanAndJerk CliffDiving CricketBowling",
    "CricketShot CuttingInKitchen Diving Drumming Fencing FieldHockeyPenalty FloorGymnastics FrisbeeCatch",
    "FrontCrawl GolfSwing Haircut Hammering HammerThrow HandstandPushups HandstandWalking HeadMassage",
    "HighJump HorseRace HorseRiding HulaHoop IceDancing JavelinThrow JugglingBalls JumpingJack JumpRope",
    "Kayaking Knitting LongJump",
)
UCF101 = [name for line in LINES for name in line.split()]
"""The first 51 classes, in the order of classInd.txt."""


def write(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_labels_of_ucf101_are_the_numbers_of_its_list_less_one(tmp_path):
    classes = read_classes(write(tmp_path / "classInd.txt", [f"{i} {n}" for i, n in enumerate(UCF101, 1)]))
    labels = {"Hammering": 34, "HammerThrow": 35, "JumpingJack": 46, "JumpRope": 47}
    assert {name: classes.index(name) for name in labels} == labels
    # What sorted folder names would give.
    assert [sorted(UCF101).index(name) for name in labels] == [35, 34, 47, 46]


def test_labels_of_imagenet_are_the_places_of_the_sorted_ids(tmp_path):
    file = write(tmp_path / "ids.txt", ["n01443537 goldfish", "n02444819 otter", "n01440764 tench, Tinca tinca"])
    assert read_classes(file) == ("n01440764", "n01443537", "n02444819")


def test_one_name_a_line_may_have_spaces(tmp_path):
    assert read_classes(write(tmp_path / "c.txt", ["zumba", "", "abseiling wall"])) == ("zumba", "abseiling wall")


def test_numbers_sort_as_numbers():
    assert lists.sorted_classes(map(str, range(12))) == tuple(map(str, range(12)))
    assert lists.sorted_classes(["10", "9", "a"]) == ("10", "9", "a")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["1 a", "3 b"], r"not 1, 2, …, 2"),
        (["n01440764", "n01440764"], "'n01440764' twice"),
        ([], "names no class"),
    ],
)
def test_damaged_lists_of_classes_are_refused(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        read_classes(write(tmp_path / "classes.txt", lines))


def test_files_of_a_list_with_and_without_labels(tmp_path):
    file = write(tmp_path / "train.txt", ["HandstandPushups/v_HandStandPushups_g08_c01.avi 37", "a b/c d.avi", ""])
    first, second = lists.read_list(file)
    assert first == Entry("HandstandPushups/v_HandStandPushups_g08_c01.avi", "37")
    assert second == Entry("a b/c d.avi")


def test_a_published_list_has_its_number_of_lines(tmp_path):
    """A copy with 9,536 and 3,782 rows is in circulation."""
    for name, count in (("trainlist01.txt", 9537), ("testlist01.txt", 3783)):
        rows = [f"A/v_A_g01_c{i}.avi" for i in range(count)]
        assert len(lists.read_list(write(tmp_path / name, rows))) == count
        with pytest.raises(UserError, match=f"lists {count - 1:,} files, and the published one {count:,}"):
            lists.read_list(write(tmp_path / name, rows[1:]))
    for number in (1, 2, 3):
        assert lists.LENGTHS[f"trainlist0{number}.txt"] + lists.LENGTHS[f"testlist0{number}.txt"] == 13_320


def test_no_group_of_a_class_is_in_both_lists():
    train = [Entry("Archery/v_Archery_g08_c01.avi"), Entry("Archery/v_Archery_g09_c01.avi")]
    # The same number of another class is another video.
    assert lists.in_both(train, [Entry("Biking/v_Biking_g08_c02.avi")]) == set()
    with pytest.raises(UserError, match="group g09 of Archery/v_Archery stands in both lists"):
        lists.in_both(train, [Entry("Archery/v_Archery_g09_c07.avi")])


def test_lists_of_kinetics(tmp_path):
    rows = ["label,youtube_id,time_start,time_end,split", "air drumming,abc-1,5,15,train", "zumba,x_y,100,110,train"]
    entries = lists.read_list(write(tmp_path / "train.csv", rows))
    assert entries == [Entry("abc-1_000005_000015", "air drumming"), Entry("x_y_000100_000110", "zumba")]
    assert lists.in_both(entries, [*entries[1:], Entry("other_000000_000010")]) == {"x_y_000100_000110"}
    with pytest.raises(UserError, match="lacks the columns time_end, time_start"):
        lists.read_list(write(tmp_path / "bad.csv", ["label,youtube_id", "a,b"]))
    with pytest.raises(UserError, match="a row has no times"):
        lists.read_list(write(tmp_path / "bad.csv", [rows[0], "a,b,five,15,train"]))


@pytest.mark.parametrize(("lines", "message"), [(["a.avi", "a.avi 1"], "lists a.avi twice"), ([], "lists no file")])
def test_damaged_lists_of_files_are_refused(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        lists.read_list(write(tmp_path / "list.txt", lines))
    with pytest.raises(UserError, match="cannot be read as a list"):
        lists.read_list(tmp_path / "nowhere.txt")


def test_an_entry_means_the_file_of_that_name_in_any_folder():
    files = ["UCF-101/A/v_A_g01_c01.avi", "UCF-101/B/x.avi", "train/zumba/x_y_000100_000110.mp4"]
    names = ["A/v_A_g01_c01.avi", "B/x", "x_y_000100_000110", "A/gone.avi", "v_A_g01_c01.avi"]
    assert lists.places([Entry(name) for name in names], files) == [0, 1, 2, None, 0]
