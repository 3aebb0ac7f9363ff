"""Who is computing which new words: several chats that ask for the same new text at once compute it once.

The engine shares one device among its chats, so a chat that waits for another's words is never later than one that
computes them beside it. It waits only for chats that are at work themselves, and for the same words once: where their
writer is cancelled or its KV is gone again, it computes them itself.
"""

from agentkv.running_chat import RunningChat
from agentkv.segment.text_index import text_digest

Words = tuple[str, int]


class Writers:
    """The new texts under way, each with its writer. Engine thread only."""

    def __init__(self) -> None:
        self._writer_of: dict[Words, RunningChat] = {}
        self._words_of: dict[RunningChat, set[Words]] = {}
        self._waiting_for: dict[RunningChat, list[RunningChat]] = {}

    def wait_for_words(self, chat: RunningChat) -> bool:
        """Whether another chat is computing words that this one needs: then it is to be admitted again once `done`
        names it. Otherwise the chat is from now on the writer of its own new words."""
        new = {(chat.tenant, text_digest(message.text)) for message in chat.new_messages}
        awaited = new & self._writer_of.keys() - chat.awaited
        if awaited:
            chat.awaited |= awaited
            self._waiting_for[self._writer_of[min(awaited)]].append(chat)
            return True
        self._words_of[chat] = new
        self._waiting_for[chat] = []
        for words in new:
            self._writer_of.setdefault(words, chat)
        return False

    def done(self, chat: RunningChat) -> list[RunningChat]:
        """A chat has computed its prompt, or ended: those that waited for it, in the order in which they came."""
        for words in self._words_of.pop(chat, ()):
            if self._writer_of.get(words) is chat:
                del self._writer_of[words]
        return self._waiting_for.pop(chat, [])

    def stop_waiting(self, chat: RunningChat) -> None:
        """A chat waits no longer."""
        for waiting in self._waiting_for.values():
            if chat in waiting:
                waiting.remove(chat)
