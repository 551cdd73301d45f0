"""Published sets of questions, each on a tiny file of its own layout."""

import json
import sys

import pytest

from tests.processes import REPOSITORY
from videogen.data import question_conversion
from videogen.data.question_conversion import Videos, annotation_files
from videogen.data.question_rows import Row, read_questions
from videogen.data.question_sets import SETS
from videogen.errors import UserError


@pytest.fixture
def write(tmp_path):
    """Writes annotation files and empty videos, converts, and gives the rows and the report."""

    def convert(name, file, content, videos, beside=(), **settings):
        folder = tmp_path / "annotations"
        folder.mkdir(exist_ok=True)
        for other, text in (*beside, (file, content)):
            text = text if isinstance(text, str) else json.dumps(text)
            (folder / other).write_bytes(text.encode())
        for video in videos:
            path = tmp_path / "videos" / video
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
        out = tmp_path / "questions.jsonl"
        report = question_conversion.convert(name, str(folder / file), str(tmp_path / "videos"), str(out), **settings)
        return read_questions(out), report

    return convert


NEXT_QA = """video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4
4010069381,369,640,480,how do the two man play the instrument,0,6,CH,roll the handle,tap their feet,strum,hit,pat
99,369,640,480,"why, then",4,7,CW,a,b,c,d,e
"""


OVO = [
    {
        **{"id": 7, "task": "EPM", "video": "/far/away/clips/a.mp4", "realtime": 215, "question": "Who was it?"},
        **{"answer": "a man", "options": ["a woman", "a man"], "gt": 1},
    },
    {
        **{"id": 8, "task": "OCR", "video": "b.mp4", "realtime": 1.5, "question": "What is written?"},
        **{"options": ["exit", "enter"], "gt": 0},
    },
    {
        **{"id": 9, "task": "REC", "video": "b.mp4", "activity": "clap"},
        "test_info": [{"realtime": 3, "count": 0}, {"realtime": 8.5, "count": 2}],
    },
    {"id": 10, "task": "SSR", "video": "b.mp4", "test_info": [{"realtime": 4, "step": "cut the bread", "type": 1}]},
    {"id": 11, "task": "CRR", "video": "b.mp4", "question": "Who wins?", "test_info": [{"realtime": 5, "type": 0}]},
]


def test_ovo_bench(write):
    rows, report = write("ovo_bench", "ovo_bench.json", OVO, ["x/a.mp4", "b.mp4"])
    both = ("no", "yes")
    assert rows == [
        Row("x/a.mp4", "Who was it?", "a man", ("a woman", "a man"), "backward.EPM", "7", start=0.0, end=215.0),
        Row("b.mp4", "What is written?", "exit", ("exit", "enter"), "current.OCR", "8", start=0.0, end=1.5),
        Row("b.mp4", "How many times did they clap?", "0", (), "future.REC", "9_0", start=0.0, end=3.0),
        Row("b.mp4", "How many times did they clap?", "2", (), "future.REC", "9_1", start=0.0, end=8.5),
        Row(
            "b.mp4", "Is this step being done now: cut the bread", "yes", both, "future.SSR", "10_0", start=0.0, end=4.0
        ),
        Row("b.mp4", "Can this be answered by now: Who wins?", "no", both, "future.CRR", "11_0", start=0.0, end=5.0),
    ]
    assert report.left_out == 0
    for change, message in (
        ({"task": "ABC"}, "question 1: unknown task 'ABC'"),
        ({"realtime": "soon"}, "must be seconds or HH:MM:SS behind the start, got 'soon'"),
        ({"realtime": 0}, "must be seconds or HH:MM:SS behind the start, got '0'"),
        ({"gt": 2}, "the answer '2' is none of the 2 options"),
        ({"task": "REC"}, "question 1 lacks test_info"),
    ):
        with pytest.raises(UserError, match=message):
            write("ovo_bench", "ovo_bench.json", [{**OVO[0], **change}], ["x/a.mp4"])


STREAMING = [
    {
        "questions": [
            {
                **{"task_type": "Source Discrimination", "question": "Who just spoke?", "time_stamp": "00:02:05"},
                **{"answer": "B", "options": ["A. a man", "B. a woman"], "required_ability": "episodic memory"},
            },
            {
                **{"task_type": "Counting", "question": "How many?", "time_stamp": "01:00:00"},
                **{"answer": "A", "options": ["A.two", "B.three"]},
            },
        ],
        "video_path": "./videos/sample_2.mp4",
    }
]


def test_streaming_bench(write):
    rows, report = write("streaming_bench", "questions_omni_stream.json", STREAMING, ["sample_2.mp4"])
    options = ("a man", "a woman")
    kind = "Source Discrimination"
    assert rows == [
        Row("sample_2.mp4", "Who just spoke?", "a woman", options, kind, "sample_2_0", start=0.0, end=125.0),
        Row("sample_2.mp4", "How many?", "two", ("two", "three"), "Counting", "sample_2_1", start=0.0, end=3600.0),
    ]
    assert report.left_out == 0
    for broken, message in (
        ({**STREAMING[0], "questions": "none"}, "'questions' must be a list"),
        ({**STREAMING[0], "questions": ["none"]}, "number 1 is no object"),
        ({"questions": []}, "lacks video_path"),
    ):
        with pytest.raises(UserError, match=message):
            write("streaming_bench", "q.json", [broken], ["sample_2.mp4"])


def test_next_qa(write):
    rows, report = write("next_qa", "val.csv", NEXT_QA, ["1164/4010069381.mp4"])
    options = ("roll the handle", "tap their feet", "strum", "hit", "pat")
    question = "how do the two man play the instrument"
    assert rows == [Row("1164/4010069381.mp4", question, options[0], options, "CH", "4010069381_6")]
    assert report.written == 1 and report.left_out == 1 and report.missing == {"99": 1}
    assert list(report.lines()) == ["1 questions, 1 left out", "1 of 1 videos that are not there, or twice: 99"]


def test_open_next_qa(write):
    text = "video,frame_count,width,height,question,answer,qid,type\n7,1,2,3,where is it,on the table,0,DL\n"
    rows, _ = write("next_qa", "test.csv", text, ["7.mp4"])
    assert rows == [Row("7.mp4", "where is it", "on the table", (), "DL", "7_0")]
    entry = {"video": 7, "question": "where is it", "answer": "on the table", "qid": 0, "type": "DL"}
    exported = {**entry, "additional_ref_answer": None}
    assert write("next_qa", "test.jsonl", json.dumps(exported) + "\n", ["7.mp4"])[0] == rows


def test_ego_schema(write):
    entry = {"q_uid": "u-1", "google_drive_id": "x", "question": "what?", **{f"option {i}": f"o{i}" for i in range(5)}}
    content = [entry, {**entry, "q_uid": "u-2"}]
    rows, _ = write(
        "ego_schema", "questions.json", content, ["u-1.mp4", "u-2.mp4"], [("subset_answers.json", {"u-1": 3})]
    )
    assert [(row.video, row.answer, row.id) for row in rows] == [("u-1.mp4", "o3", "u-1"), ("u-2.mp4", "", "u-2")]
    assert rows[0].options == ("o0", "o1", "o2", "o3", "o4")


def test_ego_schema_exported_from_parquet(write):
    entry = {"question_idx": "1", "video_idx": "u-1", "question": "what?", "option": ["a", "b"], "answer": "1"}
    rows, _ = write("ego_schema", "subset.json", [entry], ["u-1.mp4"])
    assert rows == [Row("u-1.mp4", "what?", "b", ("a", "b"), "", "u-1")]


def test_mv_bench(write):
    entry = {"video": "ZS9XR.mp4", "question": "What happened after?", "candidates": ["A.", "B."], "answer": "B."}
    content = [{**entry, "start": 9.6, "end": 17.1, "question_id": "x"}, {**entry, "answer": "C."}]
    rows, report = write("mv_bench", "action_sequence.json", content, ["star/ZS9XR.mp4"])
    assert rows == [
        Row(
            "star/ZS9XR.mp4",
            entry["question"],
            "B.",
            ("A.", "B."),
            "action_sequence",
            "action_sequence_0",
            "",
            9.6,
            17.1,
        )
    ]
    assert report.malformed == {"the answer 'C.' is none of the options; write it as it stands there": 1}
    whole, _ = write("mv_bench", "action_sequence.json", content, [], whole_videos=True)
    assert (whole[0].start, whole[0].end) == (0.0, None)


def test_mlvu_and_a_folder_of_files(write, tmp_path):
    entry = {"video": "movie101_66.mp4", "duration": 246, "question": "What color?", "candidates": ["Yellow", "Red"]}
    plot = [{**entry, "answer": "Yellow", "question_type": "plotQA"}]
    summary = [{"video": "s.mp4", "duration": 9.5, "question": "Tell.", "answer": "It is", "question_type": "summary"}]
    rows, _ = write("mlvu", "1_plotQA.json", plot, ["1_plotQA/movie101_66.mp4", "9_summary/s.mp4"])
    expected = Row("1_plotQA/movie101_66.mp4", "What color?", "Yellow", ("Yellow", "Red"), "plotQA", "1_plotQA_0")
    assert rows == [expected]
    write("mlvu", "9_summary.json", summary, [])
    out = tmp_path / "all.jsonl"
    question_conversion.convert("mlvu", str(tmp_path / "annotations"), str(tmp_path / "videos"), str(out))
    assert read_questions(out) == [expected, Row("9_summary/s.mp4", "Tell.", "It is", (), "summary", "9_summary_0")]


def test_video_mme(write):
    options = ["A. Apples.", "B. Candles.", "C. Berries.", "D. The three kinds are of the same number."]
    entry = {"video_id": "001", "duration": "short", "videoID": "fFjv93ACGo8", "question_id": "001-1"}
    entry |= {"task_type": "Counting Problem", "question": "Which is most?", "options": options, "answer": "C"}
    rows, _ = write("video_mme", "test.jsonl", json.dumps(entry) + "\n", ["data/fFjv93ACGo8.mp4"])
    said = ("Apples.", "Candles.", "Berries.", "The three kinds are of the same number.")
    assert rows == [Row("data/fFjv93ACGo8.mp4", "Which is most?", "Berries.", said, "Counting Problem", "001-1")]


def test_video_mme_grouped_by_video(write):
    question = {"question_id": "001-1", "task_type": "t", "question": "q?", "choices": ["A. x", "B. y"], "answer": "B"}
    rows, _ = write("video_mme", "output.json", [{"video_id": "001", "questions": [question]}], ["001.mp4"])
    assert rows == [Row("001.mp4", "q?", "y", ("x", "y"), "t", "001-1")]


def test_long_video_bench(write):
    entry = {
        "video_id": "86C",
        "video_path": "86C.mp4",
        "question": "In it, which?",
        "candidates": ["one", "two"],
    }
    entry |= {"correct_choice": 1, "question_category": "T2E", "id": "86C_0", "duration_group": 15, "position": [1]}
    hidden = {key: value for key, value in entry.items() if key != "correct_choice"} | {"id": "86C_1"}
    rows, _ = write("long_video_bench", "lvb_val.json", [entry, hidden], ["videos/86C.mp4"])
    assert rows[0] == Row("videos/86C.mp4", "In it, which?", "two", ("one", "two"), "T2E", "86C_0")
    assert rows[1].answer == "" and rows[1].options == ("one", "two")


def test_msvd_and_msrvtt_qa(write):
    entry = {"id": 30933, "video_id": 1301, "question": "what is chopping?", "answer": "man"}
    rows, _ = write("msvd_qa", "test_qa.json", [entry], ["vid1301.avi"])
    assert rows == [Row("vid1301.avi", "what is chopping?", "man", (), "what", "30933")]
    mapping = ("youtube_mapping.txt", "4wsuPCjDBh8_5_15 vid1302\n")
    rows, _ = write("msvd_qa", "test_qa.json", [{**entry, "video_id": 1302}], ["4wsuPCjDBh8_5_15.avi"], [mapping])
    assert rows[0].video == "4wsuPCjDBh8_5_15.avi"
    rows, _ = write("msrvtt_qa", "test_qa.json", [{**entry, "category_id": 14}], ["TestVideo/video1301.mp4"])
    assert rows[0].video == "TestVideo/video1301.mp4" and rows[0].answer == "man"


def test_tgif_qa(write):
    action = "gif_name\tquestion\ta1\ta2\ta3\ta4\ta5\tanswer\tvid_id\tkey\t\r\n"
    action += "tumblr_a_250\tWhat does it do ?\tstuff\tholds\tfall\ttalk\tflap wings\t4\tACTION4\t26\t\r\n"
    rows, _ = write("tgif_qa", "Test_action_question.csv", action, ["gifs/tumblr_a_250.gif"])
    options = ("stuff", "holds", "fall", "talk", "flap wings")
    assert rows == [Row("gifs/tumblr_a_250.gif", "What does it do ?", "flap wings", options, "action", "ACTION4")]
    trans, _ = write("tgif_qa", "Test_transition_question.csv", action.replace("ACTION", "TRANS"), [])
    assert (trans[0].kind, trans[0].id) == ("transition", "TRANS4")
    count = "gif_name\tquestion\tanswer\tvid_id\tkey\r\ntumblr_a_250\tHow many times ?\t3\tCOUNT12\t52\r\n"
    rows, _ = write("tgif_qa", "Test_count_question.csv", count, [])
    assert (rows[0].answer, rows[0].kind, rows[0].options) == ("3", "count", ())
    frame = "gif_name\tquestion\tanswer\ttype\tvid_id\tkey\tdescription\r\n"
    frame += "tumblr_a_250\twhere is the guy ?\tmachine\t3\tFRAMEQA9405\t2853\ta guy .\r\n"
    rows, _ = write("tgif_qa", "Test_frameqa_question.csv", frame, [])
    assert (rows[0].answer, rows[0].kind) == ("machine", "frameqa.location")


def test_activitynet_qa(write):
    asked = [
        {"video_name": "1QIUV7WYKXg", "question": "is the athlete wearing trousers", "question_id": "v_1QIUV7WYKXg_3"},
        {"video_name": "9eniCub7u60", "question": "what", "question_id": "v_9eniCub7u60_2"},
    ]
    answers = [{"answer": "no", "type": 3, "question_id": "v_1QIUV7WYKXg_3"}]
    videos = ["v_1QIUV7WYKXg.mp4", "9eniCub7u60.mkv"]
    rows, _ = write("activitynet_qa", "test_q.json", asked, videos, [("test_a.json", answers)])
    assert rows[0] == Row(videos[0], asked[0]["question"], "no", (), "yes/no", "v_1QIUV7WYKXg_3")
    assert rows[1] == Row(videos[1], "what", "", (), "", "v_9eniCub7u60_2")
    with pytest.raises(UserError, match="has no questions of ActivityNet-QA; give train_q.json"):
        write("activitynet_qa", "test_a.json", answers, [])


def test_a_video_is_found_by_path_or_by_its_only_name(tmp_path):
    for name in ("a/x.mp4", "b/x.mp4", "b/y.v1.webm", "z.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    videos = Videos(tmp_path)
    assert videos.find(["a/x.mp4"]) == videos.find(["a/x"]) == "a/x.mp4" and videos.find(["x.mp4"]) is None
    assert videos.find(["none", "y.v1"]) == "b/y.v1.webm" and videos.find(["z.txt"]) is None
    with pytest.raises(UserError, match="no folder"):
        Videos(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name, file, content, words",
    [
        (
            "next_qa",
            "val.csv",
            "video,question\n1,x\n",
            "lacks the columns answer, qid, type; is it the file",
        ),
        ("mlvu", "a.json", [{"question": "x"}], "question 1 lacks video; is it the file of another set"),
        ("mlvu", "a.json", {"video": "x"}, "is no list of questions"),
        ("mlvu", "a.json", "nothing", "is no JSON file; download it again"),
        ("mlvu", "a.json", [{"video": "v.mp4", "question": "x", "candidates": "ab"}], "'candidates' must be a list"),
        ("mlvu", "a.json", [{"video": "v.mp4", "question": ["x"]}], "'question' must be text or a number, got"),
        (
            "mlvu",
            "a.json",
            [{"video": "gone.mp4", "question": "x"}],
            "no question of .* can be kept: 0 questions",
        ),
        ("next_qa", "val.csv", NEXT_QA.replace(",0,6,", ",5,6,"), "the answer '5' is none of the 5 options"),
    ],
)
def test_a_file_of_another_layout_is_one_line(write, tmp_path, name, file, content, words):
    (tmp_path / "questions.jsonl").write_text("before")
    with pytest.raises(UserError, match=words) as error:
        write(name, file, content, ["v.mp4", "4010069381.mp4", "99.mp4"])
    assert "\n" not in str(error.value) and (tmp_path / "questions.jsonl").read_text() == "before"


def test_a_parquet_file_and_an_empty_folder_are_named(write, tmp_path):
    with pytest.raises(UserError, match="no UTF-8 text; of a parquet file give the export to JSON"):
        (tmp_path / "x.parquet").write_bytes(b"PAR1\xff\xfe")
        next(SETS["video_mme"](tmp_path / "x.parquet"))
    with pytest.raises(UserError, match="no csv or JSON file in"):
        annotation_files(tmp_path)


@pytest.mark.slow
def test_the_command(tmp_path, run_python):
    (tmp_path / "val.csv").write_text(NEXT_QA)
    (tmp_path / "4010069381.mp4").write_bytes(b"")
    script = str(REPOSITORY / "launch" / "questions.py")
    given = [f"--annotations={tmp_path}/val.csv", f"--videos={tmp_path}", f"--out={tmp_path}/questions.jsonl"]
    done = run_python([script, "--dataset=next_qa", *given])
    assert done.returncode == 0 and "1 questions, 1 left out" in done.stderr, done.stderr
    assert len(read_questions(tmp_path / "questions.jsonl")) == 1 and sys.executable
    wrong = run_python([script, "--dataset=nextqa", *given])
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "did you mean" in wrong.stderr, wrong.stderr
    shown = run_python([script, "--help"])
    assert shown.returncode == 0 and "Sets: " + ", ".join(sorted(SETS)) in " ".join(shown.stdout.split())
