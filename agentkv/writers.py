"""Who is computing which new words: several chats that ask for the same new text at once compute it once.

The engine shares one device among its chats, so a chat that waits for another's words is never later than one that
computes them beside it; it waits for chats only that are at work themselves.
"""

from agentkv.running_chat import RunningChat
from agentkv.segment.text_index import text_digest
from agentkv.tokenization import PromptMessage

Words = tuple[str, int]


class Writers:
    """The new texts under way, each with its writer. Engine thread only.

    Args:
        min_tokens: shorter texts are not kept, so nobody waits for them.
    """

    def __init__(self, *, min_tokens: int) -> None:
        self._min_tokens = min_tokens
        self._writer_of: dict[Words, RunningChat] = {}
        self._words_of: dict[RunningChat, set[Words]] = {}
        self._waiting_for: dict[RunningChat, list[RunningChat]] = {}

    def wait_for_words(self, chat: RunningChat) -> bool:
        """Whether another chat is computing words that this one needs: then it is to be admitted again once `done`
        names it. Otherwise the chat is from now on the writer of its own new words."""
        new = {(chat.tenant, text_digest(m.text)) for m in chat.prompt.messages if self._is_new(chat, m)}
        writer = next((self._writer_of[words] for words in new if words in self._writer_of), None)
        if writer is not None:
            self._waiting_for[writer].append(chat)
            return True
        self._words_of[chat] = new
        self._waiting_for[chat] = []
        self._writer_of.update(dict.fromkeys(new, chat))
        return False

    def done(self, chat: RunningChat) -> list[RunningChat]:
        """A chat has computed its prompt, or ended: those that waited for it, in the order in which they came."""
        for words in self._words_of.pop(chat, ()):
            del self._writer_of[words]
        return self._waiting_for.pop(chat, [])

    def stop_waiting(self, chat: RunningChat) -> None:
        """A chat waits no longer."""
        for waiting in self._waiting_for.values():
            if chat in waiting:
                waiting.remove(chat)

    def _is_new(self, chat: RunningChat, message: PromptMessage) -> bool:
        """Whether most of a message worth keeping is not read from anywhere."""
        if message.num_tokens < self._min_tokens:
            return False
        read = sum(
            min(span.end, message.end) - max(span.start, message.start)
            for span in chat.request.spans
            if span.start < message.end and message.start < span.end
        )
        return 2 * read < message.num_tokens
