"""An independent solver: reads an item's text as a person would, knowing nothing of the generator's state."""

import re

ADJUNCT = r"(?:(?:Today|Then|Later|Now) )?"
NAME = r"(?:[Tt]he )?(\w+)"
STATEMENT = re.compile(
    rf"^(?:Correction: )?{ADJUNCT}{NAME} (?:"
    r"(?P<place>(?:is|stays|sits|waits|lies|stands) in the|moved to the|went to the|came to the) (?P<where>\w+)"
    r"|swapped places with (?:the )?(?P<other>\w+)"
    r"|(?:is with|joined|sits with|met|followed|lies with|went to|found|took) (?:the )?(?P<host>\w+))$"
)
ORDINALS = ("first", "second", "third", "fourth", "fifth")


class Solver:
    """Follows the reports in their order of reading."""

    def __init__(self, contents):
        self.where, self.lists, self.takes, self.says = {}, {}, {}, {}
        self.totals, self.votes, self.owned, self.stated, self.candidates = {}, {}, {}, {}, {}
        for number, content in enumerate(contents, 1):
            head, _, body = content.partition(": ")
            if head.startswith("Candidate"):
                self.candidates[int(head.split()[1])] = body
                continue
            for sentence in re.split(r"\.(?: |$)", body):
                if sentence:
                    self._read(number, sentence)

    def _read(self, number, sentence):
        if sentence.startswith("The list: "):
            self.lists[number] = sentence.removeprefix("The list: ").split(", ")
        elif found := re.match(r"(\w+) takes the (\w+) item of report (\d)$", sentence):
            self.takes[found[1]] = self.lists[int(found[3])][ORDINALS.index(found[2])]
        elif found := re.match(r"(\w+) takes the same as (\w+)$", sentence):
            self.takes[found[1]] = self.takes[found[2]]
        elif found := re.match(r"(\w+) said: (.+)$", sentence):
            self.says[found[1]] = found[2]
        elif found := re.match(r"(\w+) said the same as (\w+)$", sentence):
            self.says[found[1]] = self.says[found[2]]
        elif found := re.match(r"The (\w+) grow by (\d)$", sentence):
            self.totals[found[1]] = self.totals.get(found[1], 0) + int(found[2])
        elif found := re.match(r"The (\w+) gets our vote$", sentence):
            self.votes[found[1]] = self.votes.get(found[1], 0) + 1
        elif found := re.match(r"(\w+) has (\d) (\w+)$", sentence):
            self.owned.setdefault(found[3], {})[found[1]] = int(found[2])
        elif found := re.match(ADJUNCT + r"(\w+) (?:is|stays|stands) (\d) (above|below) (\w+) in (\w+)$", sentence):
            owned = self.owned[found[5]]
            owned[found[1]] = owned[found[4]] + int(found[2]) * (1 if found[3] == "above" else -1)
        else:
            self._event(sentence)

    def _event(self, sentence):
        found = STATEMENT.match(sentence)
        assert found, f"no rule reads {sentence!r}"
        subject = found[1]
        if found["where"] in self.where:  # "went to the hammer": to where the hammer is
            self.where[subject] = self.where[found["where"]]
        elif found["place"]:
            still = found["place"].endswith("in the") and not sentence.startswith("Correction")
            if still:
                self.stated.setdefault(subject, []).append(found["where"])
            self.where[subject] = found["where"]
        elif found["other"]:
            other = found["other"]
            self.where[subject], self.where[other] = self.where[other], self.where[subject]
        else:
            self.where[subject] = self.where[found["host"]]
            if self._first_time(subject):
                self.stated.setdefault(subject, []).append(self.where[subject])

    def _first_time(self, subject):
        return subject not in self.stated

    def reply(self, item):
        """The right reply to an item's question."""
        last = item.instruction or item.reader_system
        words = set(re.findall(r"\w+", last))
        named = [name for name in (*self.where, *self.takes, *self.says, *self.votes) if name in words]
        return getattr(self, f"_{item.family}", self._place)(item, named, last)

    def _subject(self, name):
        return name if name[0].isupper() else f"The {name}"

    def _place(self, _item, named, _last):
        return f"Answer: {self._subject(named[0])} is in the {self.where[named[0]]}."

    def _unknown(self, item, named, _last):
        assert not named
        return re.sub(r" is not .*", " is not in the reports.", item.answer)

    def _ordinal(self, _item, named, last):
        if found := re.search(r"the (\w+) item of report (\d)", last):
            thing = self.lists[int(found[2])][ORDINALS.index(found[1])]
            return f"Answer: The {found[1]} item of report {found[2]} is {thing}."
        taker = next(name for name in named if name in self.takes)
        return f"Answer: {taker} takes {self.takes[taker]}."

    def _quote(self, _item, named, _last):
        speaker = next(name for name in named if name in self.says)
        return f"Answer: {speaker} said: {self.says[speaker]}."

    def _total(self, _item, _named, last):
        noun = next(noun for noun in self.totals if noun in last)
        return f"Answer: The {noun} add up to {self.totals[noun]}."

    def _count(self, _item, named, _last):
        thing = next(name for name in named if name in self.votes)
        return f"Answer: The {thing} has {self.votes[thing]} votes."

    def _maximum(self, _item, _named, last):
        noun = next(noun for noun in self.owned if noun in last)
        best = max(self.owned[noun], key=self.owned[noun].get)
        return f"Answer: {best} has the most {noun}."

    def _contradiction(self, _item, _named, _last):
        for name, places in self.stated.items():
            if len(set(places)) > 1:
                return f"Critique: The reports disagree about {name}: the {places[0]} or the {places[1]}."
        return "Critique: The reports agree."

    def _judge(self, _item, _named, _last):
        for number, claim in self.candidates.items():
            name, place = re.match(rf"{NAME} is in the (\w+)\.$", claim).groups()
            if self.where[name] == place:
                return f"Verdict: {claim} Candidate {number} is right."
        raise AssertionError("no candidate is right")
