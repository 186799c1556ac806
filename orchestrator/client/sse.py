"""Server-sent events, as https://html.spec.whatwg.org/multipage/server-sent-events.html has them."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Message:
    event: str
    data: str
    id: str


@dataclass
class Parser:
    """Fed with lines; gives a message at each blank line that ends one.

    >>> parser = Parser()
    >>> [parser.feed(line) for line in ("id: 7", "data: {}", "")][-1]
    Message(event='message', data='{}', id='7')
    """

    last_id: str = ""
    _event: str = ""
    _data: list[str] = field(default_factory=list)

    def feed(self, line: str) -> Message | None:
        if not line:
            message = Message(self._event or "message", "\n".join(self._data), self.last_id) if self._data else None
            self._event, self._data = "", []
            return message
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data":
                self._data.append(value)
            case "event":
                self._event = value
            case "id" if "\0" not in value:
                self.last_id = value
        return None
