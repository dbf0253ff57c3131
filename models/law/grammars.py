"""Constraints compiled for a model's vocabulary: which tokens may come next, of all that were chosen before.

llguidance does the work, on the bundle's own tokens: no text of a client's constraint becomes a special token, and an
answer ends with any of the model's stop tokens once it is complete. Both sides of a link compile the same constraint,
to the same masks if they have the same `core.constraint.dialect`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import llguidance
import numpy as np
from numpy.typing import NDArray

from cutline.core.constraint import Constraint, Grammar
from cutline.core.lru_cache import LruCache
from cutline.errors import InputError
from cutline.models.bundle import Manifest
from cutline.models.vocabulary import Vocabulary

KEPT_BYTES = 1 << 20  # of the texts of compiled constraints

# Bounds of the compiler, in its own units: some 20 ms to compile, 10 ms a mask and 40 MB of states at the most.
_LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=150_000,
    step_max_items=50_000,
    max_lexer_states=20_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
# Models write JSON with these spaces; to leave them open would let a small model write spaces without end.
_JSON: Mapping[str, Any] = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    "coerce_one_of": True,
    "lenient": False,
}


class Matcher:
    """One answer against a constraint. Not for two threads at once."""

    def __init__(self, compiled: llguidance.LLMatcher, manifest: Manifest) -> None:
        self._inner = compiled
        self._vocabulary = manifest.decoder.vocabulary
        self._stops = manifest.stop_tokens
        self._ended = False

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next, (vocabulary,). Raises InputError once the grammar is too complex to go on."""
        allowed = np.zeros(self._vocabulary, np.bool_)
        if self._ended or self._inner.is_stopped():
            self._check()
            allowed[list(self._stops)] = True
            return allowed
        bits = np.frombuffer(self._inner.compute_bitmask(), np.uint8)
        self._check()
        found = np.unpackbits(bits, bitorder="little", count=min(self._vocabulary, 8 * len(bits)))
        allowed[: len(found)] = found
        return allowed

    def consume(self, tokens: Sequence[int]) -> None:
        """Go on with `tokens`. Raises InputError where they do not keep to the constraint."""
        for token in tokens:
            fits = not self._ended
            if token in self._stops:
                fits, self._ended = fits and self._inner.is_accepting(), True
            elif fits:
                fits = self._inner.try_consume_tokens([token]) == 1
            if not fits:
                raise InputError("the answer so far does not keep to its constraint; ask for another")

    def forced(self) -> tuple[int, ...]:
        """Tokens of the text that must come next, as the tokenizer writes it; others may write the same."""
        if self._ended or self._inner.is_stopped():
            return ()
        return tuple(self._inner.compute_ff_tokens())

    def _check(self) -> None:
        if self._inner.is_error():
            raise InputError(f"the constraint became too complex to go on: {_reason(self._inner.get_error())}")


class CompiledConstraint:
    """A constraint that compiled. For any threads."""

    def __init__(self, constraint: Constraint, compiled: llguidance.LLMatcher, manifest: Manifest) -> None:
        self._constraint = constraint
        self._compiled = compiled
        self._manifest = manifest

    def matcher(self, answer: Sequence[int] = ()) -> Matcher:
        """For an answer that begins so. Raises InputError where that does not keep to the constraint."""
        matcher = Matcher(self._compiled.deep_copy(), self._manifest)
        matcher.consume(answer)
        return matcher

    def accepts(self, text: str, vocabulary: Vocabulary) -> bool:
        """Whether a whole `text` by somebody else keeps to it; the spaces of its JSON are as they like."""
        if self._constraint.grammar is Grammar.JSON_SCHEMA:
            try:
                text = json.dumps(json.loads(text), ensure_ascii=False)
            except (ValueError, RecursionError):
                return False
        try:
            self.matcher((*vocabulary.encode_plain(text), self._manifest.stop_tokens[0]))
        except InputError:
            return False
        return True


class Grammars:
    """Compiles constraints for one model, and keeps those that were used last. For any threads."""

    def __init__(self, vocabulary: Callable[[], Vocabulary], manifest: Manifest) -> None:
        """`vocabulary` is asked for when the first constraint comes."""
        self._vocabulary = vocabulary
        self._manifest = manifest
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._turn = threading.Lock()
        self._kept: LruCache[tuple[str, Constraint], CompiledConstraint] = LruCache(KEPT_BYTES)

    def compiled(self, constraint: Constraint, *, tenant: str = "") -> CompiledConstraint:
        """What `tenant` asks an answer to keep to. Raises InputError where it does not compile within its bounds.

        Nobody learns by the time it takes what another tenant had compiled.
        """
        if self._vocabulary().of_words:
            raise InputError(
                f"{self._manifest.name} has a WordPiece tokenizer, which cannot write every text; "
                "no answer of it can be held to a constraint"
            )
        key = tenant, constraint
        if (kept := self._kept.get(key)) is None:
            matcher = llguidance.LLMatcher(self._tokens(), self._grammar(constraint), log_level=0, limits=_LIMITS)
            if matcher.is_error():
                raise InputError(f"the {constraint.grammar} does not compile: {_reason(matcher.get_error())}")
            kept = CompiledConstraint(constraint, matcher, self._manifest)
            kept.matcher().allowed()  # of some the first mask is what takes long
            self._kept.put(key, kept, len(constraint.text))
        return kept

    def _grammar(self, constraint: Constraint) -> str:
        if constraint.grammar is not Grammar.TOOL_CALLS:
            return _grammar(constraint)
        syntax, added = self._manifest.family.tools, self._vocabulary().added
        if syntax is None or not {syntax.begin, syntax.end} <= added.keys():
            raise InputError(f"{self._manifest.name} has no words for calls of tools")
        calls = constraint.value
        lark = syntax.grammar(calls["parameters"], parallel=calls["parallel"], added=added, how=_JSON)
        return llguidance.LLMatcher.grammar_from_lark(lark)

    def _tokens(self) -> llguidance.LLTokenizer:
        with self._turn:
            if self._tokenizer is None:
                stops = list(self._manifest.stop_tokens)
                wrapped = llguidance.TokenizerWrapper(_Tokens(self._vocabulary(), self._manifest))
                self._tokenizer = llguidance.LLTokenizer(wrapped, eos_token=stops)
            return self._tokenizer


class _Tokens:
    """A bundle's tokens as llguidance asks for them: no added token has a text, so no text becomes one."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, manifest: Manifest) -> None:
        self._vocabulary = vocabulary
        self.eos_token_id = manifest.stop_tokens[0]
        self.special_token_ids = sorted(vocabulary.added.values())
        added = frozenset(self.special_token_ids)
        self.tokens = [
            b"" if token in added else vocabulary.bytes_of(token) for token in range(manifest.decoder.vocabulary)
        ]

    def __call__(self, text: bytes) -> list[int]:
        return list(self._vocabulary.encode_plain(text.decode()))


def _grammar(constraint: Constraint) -> str:
    make = llguidance.LLMatcher
    match constraint.grammar:
        case Grammar.JSON_SCHEMA:
            schema = constraint.value
            return make.grammar_from_json_schema({} if schema is True else schema, overrides=_JSON)  # type: ignore[arg-type]
        case Grammar.REGEX:
            return make.grammar_from_regex(constraint.text)
        case Grammar.CHOICE:
            # A string of Lark is written as JSON's are.
            texts = " | ".join(json.dumps(text, ensure_ascii=False) for text in constraint.value)
            return make.grammar_from_lark(f"start: {texts}")
        case _:
            return make.grammar_from_lark(constraint.text)


def _reason(said: str) -> str:
    """The first line of what the compiler says, without the grammar that it quotes."""
    return " ".join(said.split("\n")[0].split())[:200]
