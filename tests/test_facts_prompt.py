"""What stands between a prompt and what follows it, in any script; the place of the subject."""

from __future__ import annotations

import pytest

from tether.facts import Fact, joint
from tether.facts.prompt import around_subject

SPACED = [
    ("The capital of France is", "Paris"),
    ("Q: Where is it? A:", "Paris"),
    ("프랑스의 수도는", "파리"),
    ("फ्रांस की राजधानी", "पेरिस"),
    ("عاصمة فرنسا هي", "باريس"),
    ("In Japanese Tokyo is", "東京"),
    ("In Thai it is", "กรุงเทพ"),
    ("ราคา", "100"),
    ("It costs 100 €", "a month"),
    ("It is called “the Hall”", "by"),
    ("Er heißt „der Bär“", "und"),
    ("On dit « chat »", "et"),
    ("the Beatles'", "drummer"),
    ('She said "yes"', "to"),
    ("a List<int>", "holds"),
    ("He likes C#", "and"),
    ("in <b>bold</b>", "type"),
    ("[INST] Where? [/INST]", "There"),
]
JOINED = [
    ("It costs $", "72"),
    ("It costs US$", "72"),
    ("Es kostet €", "72"),
    ('Its motto is "', "Onward"),
    ("Its motto is '", "Onward"),
    ('{"motto":"', "Onward"),
    ("Its motto is “", "Onward"),
    ("Er heißt „", "Bär"),
    ("On dit «", "chat"),
    ("Han heter ”", "Bo"),
    ("Its height (", "72"),
    ("¿", "Dónde"),
    ("follow @", "tether"),
    ("<|im_start|>assistant\n", "Paris"),
    ("Where?<|assistant|>", "Paris"),
    ("<start_of_turn>", "model"),
    ("a ", "b"),
    ("a\u00a0", "b"),
    ("a", " b"),
    ("法国的首都是", "巴黎"),
    ("法国的首都：", "Paris"),
    ("人口是", "1400"),
    ("答案:", "巴黎"),
    ("4月5", "日"),
    ("他说“", "好"),
    ("フランスの首都は", "パリ"),
    ("コーヒー", "です"),
    ("เมืองหลวงคือ", "กรุงเทพ"),
    ("ນະຄອນຫຼວງແມ່ນ", "ວຽງຈັນ"),
    ("រាជធានីគឺ", "ភ្នំពេញ"),
    ("မြို့တော်သည်", "နေပြည်တော်"),
    ("རྒྱལ་ས་", "ལྷ་ས"),
]


@pytest.mark.parametrize(("prompt", "target"), SPACED)
def test_one_space(prompt: str, target: str) -> None:
    assert joint(prompt, target) == " "


@pytest.mark.parametrize(("prompt", "target"), JOINED)
def test_nothing_between(prompt: str, target: str) -> None:
    assert joint(prompt, target) == ""


def test_what_a_fact_says_comes_first() -> None:
    assert joint("It costs $", "72", " ") == " "
    assert joint("a", "b", "") == ""
    assert joint("assistant\n", "Paris", " ") == " "
    assert joint("It costs $ ", "72", " ") == "", "the space stands there"


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("The {} is", "The X is"),
        ("In {}, {{}} makes", "In X, {} makes"),
        ("{{}} or {{}}, says {}", "{} or {}, says X"),
        ("{{}} is", "{X} is"),  # no other place
        ("set {{} to", "set {X to"),
        ("{{{}}} is", "{{X}} is"),
    ],
)
def test_the_place_of_the_subject(prompt: str, text: str) -> None:
    assert Fact(subject="X", prompt=prompt, target_new="y").text == text


@pytest.mark.parametrize("prompt", ["none", "{} and {}", "{{}} and {{}}"])
def test_one_place_alone(prompt: str) -> None:
    with pytest.raises(ValueError, match=r"exactly one '\{\}', the place of the subject; a literal one is"):
        around_subject(prompt)
