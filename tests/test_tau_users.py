"""Customers: what they say and when, how they come from tau-bench's prose, and other agents in their place."""

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gymnasium as gym
import pytest

from verigym import tasks
from verigym.agents.agent import Agent
from verigym.agents.endpoint import EndpointAgent
from verigym.envs.world import WorldEnv
from verigym.tasks._tau_user import first_person, script
from verigym.tasks.canonical import render_call
from verigym.tasks.errors import ConfigError, EnvClosedError, TaskDataError
from verigym.tasks.worlds.customer import ALL_DONE, GO_ON, NO_OTHERS, YES, Customer
from verigym.tasks.worlds.simulated import GREETING, STOP
from verigym.tasks.worlds.user import NO_MORE, THANKS

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
NEEDS_DATA = pytest.mark.skipif(not DATA.is_dir(), reason="no real data in ../shared/data beside the repository")
SETS = [("retail", "train"), ("retail", "dev"), ("retail", "test"), ("airline", "test")]
SCRIPT = {
    "says": "I want to return the lamp. I want the refund on my card.",
    "facts": {"zip": "It is 19122.", "email": "It is a@b.com."},
    "more": ["If asked, I also want to return the chair."],
}
USER = {
    "id": "ana_li_1234",
    "name": {"first_name": "Ana", "last_name": "Li"},
    "address": {"address1": "1 Elm", "address2": "", "city": "Bath", "state": "ME", "zip": "19122", "country": "USA"},
    "email": "ana.li1@example.com",
    "payment_methods": {"paypal_1": {}},
}


def talk(*messages, script=SCRIPT):
    user = Customer(script)
    return [user.reply(message) for message in messages]


# What a customer says.


@pytest.mark.parametrize(
    "question",
    [
        "May I have your email, or your zip code?",
        "Please provide your email or zip.",
        "Before I can help, I'll need your zip code and email.",
        "Could you please tell me:\n- your email?\n- your zip?",
    ],
)
def test_a_question_gets_the_facts_that_it_asks_for(question):
    assert set(talk(question)[0][0].split(". ")) == {"It is 19122", "It is a@b.com."} or talk(question) == [
        ("It is 19122. It is a@b.com.", False)
    ]


def test_the_rest_is_told_before_anything_is_confirmed():
    said = talk("I will return the lamp. Do you confirm (yes/no)?", "And the chair. Do you confirm?")
    assert said == [("If asked, I also want to return the chair.", False), (YES, False)]


def test_the_rest_is_told_to_whoever_says_something_or_asks_for_what_is_no_fact():
    told = ("If asked, I also want to return the chair.", False)
    assert talk("I returned the lamp.")[0] == told
    assert talk("Which colour has it?")[0] == told
    assert talk("Which zip?", "Which zip?", "Done.") == [("It is 19122.", False)] * 2 + [told]


def test_what_was_said_is_said_again_to_a_question_about_it():
    *_, lamp, other, proceed = talk("Hm.", "How shall the refund be paid?", "Who?", "Shall I return it?")
    assert lamp == ("I want the refund on my card.", False)
    assert other == (NO_MORE, False)
    assert proceed == (YES, False)


def test_the_customer_asks_whether_all_is_done_and_leaves_when_told_so_or_offered_more():
    script = {**SCRIPT, "more": []}
    assert talk("It is returned.", "It is.", script=script) == [(ALL_DONE, False), (THANKS, True)]
    assert talk("It is done. Is there anything else?", script=script) == [(THANKS, True)]
    assert talk("Done. Please let me know if you need any further help.", script=script) == [(THANKS, True)]
    assert talk("", "Your zip?", "", "", script=script)[2:] == [(ALL_DONE, False), (THANKS, True)]


def test_the_customer_waits_for_an_agent_that_is_about_to_do_something():
    script = {**SCRIPT, "more": []}
    for busy in (
        "Let me look that up.",
        "One moment, please.",
        "Not yet, I am still working on it.",
        "I will check it.",
    ):
        assert talk("Done.", busy, "Done.", "Yes.", script=script)[1:] == [
            (GO_ON, False), (ALL_DONE, False), (THANKS, True)]  # fmt: skip


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("To assist you further, could you please provide your zip?", "It is 19122."),
        ("Could you tell me your zip code so that I can help you further?", "It is 19122."),
        ("Please provide the following:\n\n1. Your name\n2. Your zip code", "It is 19122."),
        ("**May I have your zip code?** I need it.", "It is 19122."),
        ("Are there any other items in this order that you would like to exchange?", NO_OTHERS),
        ("Are these all, or is there anything else you'd like to modify?", NO_OTHERS),
        ("**Shall I proceed?** (yes/no)", YES),
        ("Do you confirm (yes/no), or is there anything else to change before I proceed?", f"{NO_OTHERS} {YES}"),
        ("Could you describe the matter?", NO_MORE),
        ("Hello! How can I help you today?", SCRIPT["says"]),
    ],
)
def test_a_customer_does_not_leave_over_a_question(message, said):
    assert talk(message, script={**SCRIPT, "more": []}) == [(said, False)]


@pytest.mark.parametrize(
    "offer",
    [
        "Is there anything else?",
        "[changes: none] Is there anything else?",
        "You will get a confirmation. Is there anything else I can help you with before you go?",
        "What else can I do for you?",
        "Can I help you with something else today?",
        "Is there anything else I can help you with regarding your return?",
        "Done! If you have any other questions, feel free to ask.",
        "If you need further assistance, please let me know.",
    ],
)
def test_a_customer_leaves_when_offered_further_help(offer):
    assert talk(offer, script={**SCRIPT, "more": []}) == [(THANKS, True)]


@pytest.mark.parametrize(
    "script",
    [
        {},
        {"says": 1},
        {"says": "a", "facts": {"b": 1}},
        {"says": "a", "more": [1]},
        {"says": "a", "more": 1},
        {"says": "a", "facts": 1},
    ],
)
def test_what_is_no_script_is_refused(script):
    with pytest.raises(TaskDataError, match="a customer must be such as"):
        Customer(script)


# How one comes from prose.


def test_prose_in_the_second_person_is_said_in_the_first():
    assert first_person("You're sure that the agent told you: your order is yours, you've paid yourself.") == (
        "I am sure that the agent told me: my order is mine, I've paid myself."
    )


def test_who_the_user_is_and_of_what_kind_is_told_when_asked_and_not_before():
    prose = "You are Ana Li in 19122. You are shy, polite. You want to return the lamp. If the agent asks, keep it."
    made = script(prose, USER)
    assert (made["says"], made["more"]) == ("I want to return the lamp.", ["If the agent asks, keep it."])
    facts = made["facts"]
    assert facts["zip"] == "My zip code is 19122."
    assert facts["email"] == "My email is ana.li1@example.com."
    assert facts["payment"] == "Please use paypal_1."
    assert facts["reason"] == "Otherwise it is no longer needed."
    assert facts["number"] == "I have no order number at hand; my profile has it."
    made = script("You want to stop it, but if the agent asks you to confirm, keep it. You then want to talk", USER)
    assert made["says"] == "I want to stop it."
    assert made["more"] == ["But if the agent asks me to confirm, keep it.", "I then want to talk."]
    made = script("Be nice. If the agent asks, you want to stop it. Then you go. ", USER)
    assert (made["says"], made["more"]) == ("Be nice. If the agent asks, I want to stop it. Then I go.", [])
    facts = script("You want order #W1234567 sent to 2 Oak Street. You want to cancel the other, a mistake.", USER)[
        "facts"
    ]
    assert facts["reason"] == "I want to cancel the other, a mistake. Otherwise it is no longer needed."
    assert facts["id"] == "I want order #W1234567 sent to 2 Oak Street."
    assert facts["address"] == f"{facts['id']} My address in your files is 1 Elm, Bath, ME, 19122, USA."


@NEEDS_DATA
@pytest.mark.parametrize(("domain", "split"), SETS)
def test_all_that_an_instruction_names_can_be_had_from_the_user(domain, split):
    for task in tasks.load(f"tau_{domain}", split=split, source=str(DATA / "tau_bench")):
        user = task.metadata["user"]
        told = " ".join([user["says"], *user["more"], *user["facts"].values()])
        names = re.findall(r"#?\w*\d[\w.]*\w|(?<=')[^'{}]+(?='[:,}])", task.metadata["instruction"])
        assert [name for name in names if name not in told] == [], task.id


@NEEDS_DATA
@pytest.mark.parametrize(("domain", "split"), SETS)
def test_an_agent_that_keeps_to_the_policy_serves_the_user(domain, split):
    """It asks who the user is, looks the user up, asks for a confirmation until it is given, acts, and tells."""
    env = gym.make(f"verigym/Tau{domain.title()}-v0", split=split, source=str(DATA / "tau_bench")).unwrapped
    for task in env.tasks.ids[:60]:
        env.reset(seed=0, options={"task": task})
        said = env.step("Welcome. Could you provide your email, your name and zip code, and your user id?")[0]
        if domain == "retail":
            email = re.search(r"[\w.]+@example\.com", said)[0]
            user_id = env.step(render_call("find_user_id_by_email", {"email": email}))[0]
        else:
            user_id = re.search(r"[a-z]+_[a-z]+_\d{4}", said)[0]
        assert json.loads(env.step(render_call("get_user_details", {"user_id": user_id}))[0])["email"] in said
        for _ in range(3):
            said = env.step("Here is all that I will do: ... Do you confirm that, and the payment method (yes/no)?")[0]
            if "Yes" in said:
                break
        assert YES in said
        for turn in env.gold_episodes(env.tasks.get(task))[0]:
            *_, terminated, _, info = env.step(turn)
            if terminated:
                break
        assert info["verdict"].reward == 1.0


# Another agent in the user's place.


class Player(Agent):
    """A user who says what it was told to say, and remembers what it heard."""

    def __init__(self, *says):
        self.says, self.heard = iter(says), []

    def act(self, messages, tools=()):
        self.heard.append([dict(message) for message in messages])
        return next(self.says)


@pytest.fixture
def one_task():
    prose = "You are Ana Li in 19122. You want to move order 1 to day 5."
    metadata = {
        "world": "desk",
        "state": {"orders": {"1": {"status": "open", "day": 3, "price": 2}}},
        "instruction": prose,
    }
    move = {"name": "move_order", "arguments": {"order": 1, "day": 5}}
    task = tasks.Task("t", "Move it.", {"turns": [[move], "Done."]}, metadata)
    return tasks.TaskSet([task], name="one", split="train")


def test_a_step_that_waits_for_a_simulated_user_ends_with_the_environment(one_task):
    asked, answers = threading.Event(), iter(["Hello."])

    class Thinking(Agent):
        def act(self, messages, tools=()):
            for answer in answers:
                return answer
            asked.set()
            threading.Event().wait()

    env, raised = WorldEnv(one_task, user=Thinking(), verifier="service"), []
    env.reset(seed=0)

    def step():
        try:
            env.step("To which day?")
        except EnvClosedError as error:
            raised.append(error)

    thread = threading.Thread(target=step, daemon=True)
    thread.start()
    assert asked.wait(60)
    env.close()
    thread.join(60)
    assert len(raised) == 1


def test_an_agent_plays_the_user_with_the_roles_changed_until_it_stops(one_task):
    player = Player("Hello, <think>day 5</think>it is about order 1.", "To day 5.", f"Bye. {STOP}")
    env = WorldEnv(one_task, user=player, verifier="service")
    assert env.reset(seed=0)[0] == "Hello, it is about order 1."
    assert env.step("To which day?")[0] == "To day 5."
    env.step(render_call("move_order", {"order": 1, "day": 5}))
    observation, reward, terminated, *_ = env.step("It is moved.")
    assert (observation, reward, terminated) == ("Bye.", 1.0, True)
    system, *rest = player.heard[-1]
    assert system["role"] == "system"
    assert "You want to move order 1 to day 5." in system["content"]
    assert STOP in system["content"]
    assert [(message["role"], message["content"]) for message in rest] == [
        ("user", GREETING),
        ("assistant", "Hello, <think>day 5</think>it is about order 1."),
        ("user", "To which day?"),
        ("assistant", "To day 5."),
        ("user", "It is moved."),
    ]


@contextmanager
def endpoint(answers):
    """An OpenAI-compatible endpoint that gives these answers one after the other, and keeps what it was asked."""
    answers, asked = iter(answers), []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            message = {"role": "assistant", "content": next(answers)}
            reply = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"completion_tokens": 3}}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(reply).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


@NEEDS_DATA
def test_a_model_behind_an_endpoint_plays_the_user_of_a_real_task():
    with endpoint(["I want to cancel #W7602708.", "My zip is 77209.", STOP]) as (url, asked):
        env = gym.make("verigym/TauRetail-v0", source=str(DATA / "tau_bench"), user=EndpointAgent(url, "m")).unwrapped
        task = env.tasks.get("retail-train-4")
        assert env.reset(options={"task": task.id})[0] == "I want to cancel #W7602708."
        env.step("Who are you?")
        for turn in task.target["turns"][0]:
            env.step(render_call(**turn))
        observation, reward, terminated, *_ = env.step("It is cancelled.")
    assert (observation, reward, terminated) == (THANKS, 1.0, True)
    roles = [message["role"] for message in asked[-1]["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    assert task.metadata["instruction"].strip() in asked[0]["messages"][0]["content"]
    assert "tools" not in asked[0]


def test_who_plays_the_user_can_be_named_by_what_makes_it(one_task, tmp_path, monkeypatch):
    (tmp_path / "players.py").write_text(
        "class Player:\n    def act(self, messages, tools=()):\n        return 'Hello.'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert WorldEnv(one_task, user="players:Player", verifier="service").reset(seed=0)[0] == "Hello."


def test_what_is_no_agent_and_a_task_without_an_instruction_are_refused(one_task):
    with pytest.raises(ConfigError, match="user must be an Agent"):
        WorldEnv(one_task, user=max)
    with pytest.raises(ConfigError, match="'gpt' must name a function as module:attribute"):
        WorldEnv(one_task, user="gpt")
    with pytest.raises(TaskDataError, match="has no instruction for who plays its user"):
        gym.make("verigym/Desk-v0", user=Player())
