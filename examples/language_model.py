"""A language model fine-tuned on several tasks at once: a tiny transformer, letter by letter.

It first learns to continue a text. Then it is tuned to copy five letters, to turn them round, to sort them and to
count the vowels among them, all with one head; the letters come first, then a sign for the task, then the answer.
Tasks of a language model share every parameter and converge at different times. `coba` looks at the slopes of
their validation losses and moves weight to the tasks that converge slowly, away from those that begin to overfit.
It was made for one validation batch after every step; here there is one after every fifth.

    python examples/language_model.py                    # ew against coba
    python examples/language_model.py --strategies uw
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn

import mtobal

TEXT = """
a network that learns several things at once has one set of shared layers and a loss for every thing. each
loss pulls the shared layers in a direction of its own, and the strongest pull decides where they go. whoever
adds the losses up gives the loudest task the word. a balance is found when no task has to wait for the
others, and none has to give up what it had learned before. there are many ways to look for it: some weigh the
losses, some turn the gradients, and some look back at what a step has done. none of them is the best for all
networks, so measure before you believe.
"""
TASKS: dict[str, tuple[str, Callable[[str], str]]] = {
    "copy": ("=", lambda word: word),
    "reverse": ("<", lambda word: word[::-1]),
    "sort": ("^", lambda word: "".join(sorted(word))),
    "vowels": ("#", lambda word: str(sum(letter in "aeiou" for letter in word))),
}
WORD = 5
LETTERS = sorted({*TEXT, *"=<^#012345"})
CODES = {letter: code for code, letter in enumerate(LETTERS)}
LENGTH = 2 * WORD  # of a row: the word, the sign, and the answer without its last letter
VALIDATE_EVERY = 5
COBA = "coba(warm_up=5,window=20)"


def encode(text: str) -> Tensor:
    """Return a text as numbers."""
    return torch.tensor([CODES[letter] for letter in text])


class Transformer(nn.Module):
    """A causal transformer over letters."""

    def __init__(self, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(len(LETTERS), width), nn.Embedding(LENGTH, width)
        block = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, len(LETTERS))

    def forward(self, codes: Tensor) -> Tensor:
        length = codes.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        return self.head(self.blocks(self.letters(codes) + self.places.weight[:length], mask, is_causal=True))


def pretrain(model: Transformer, steps: int) -> None:
    """Learn to continue the text."""
    codes = encode(TEXT.replace("\n", " "))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        starts = torch.randint(len(codes) - LENGTH, (32, 1))
        rows = codes[starts + torch.arange(LENGTH + 1)]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()).backward()
        optimizer.step()


def exercises(number: int) -> dict[str, Tensor]:
    """Return random words with their answers, one row each, by task; -1 stands behind an answer."""
    words = ["".join("abcdeiou"[i] for i in torch.randint(8, (WORD,)).tolist()) for _ in range(number)]
    solved = {task: [word + sign + answer(word) for word in words] for task, (sign, answer) in TASKS.items()}

    def row(text: str) -> Tensor:
        return nn.functional.pad(encode(text), (0, LENGTH + 1 - len(text)), value=-1)

    return {task: torch.stack([row(text) for text in texts]) for task, texts in solved.items()}


def losses_of(model: Transformer, batches: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the mean cross entropy of the answers, by task, from one pass of all of them through the model."""
    rows = torch.cat(list(batches.values()))
    logits = model(rows[:, :-1].clamp(min=0))[:, WORD:]
    answers = rows[:, WORD + 1 :]
    return {
        task: nn.functional.cross_entropy(found.flatten(0, 1), wanted.flatten(), ignore_index=-1)
        for task, found, wanted in zip(
            batches, logits.chunk(len(batches)), answers.chunk(len(batches)), strict=True
        )
    }


def tune(strategy: str, state: dict[str, Tensor], steps: int) -> tuple[dict[str, float], dict[str, float]]:
    """Tune with a strategy; return the loss on new words, and the weights of the last step, by task."""
    torch.manual_seed(1)
    model = Transformer()
    model.load_state_dict(state)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    balancer = mtobal.Balancer(strategy, model, tasks=TASKS)
    validation, test = exercises(32), exercises(200)

    def losses_on(batches: dict[str, Tensor]) -> dict[str, float]:
        with torch.no_grad():
            return {task: loss.item() for task, loss in losses_of(model, batches).items()}

    for step in range(steps):
        if balancer.strategy.revision and step % VALIDATE_EVERY == 0:
            balancer.revise(losses_on(validation))
        optimizer.zero_grad()
        balancer(losses_of(model, exercises(16))).backward()
        optimizer.step()
    return losses_on(test), balancer.weights


def main() -> None:
    """Compare the strategies, and print one row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", nargs="+", default=[COBA], help=f"compared with ew; {COBA} by default")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()

    torch.manual_seed(0)
    model = Transformer()
    pretrain(model, options.steps)
    print(f"{options.steps} steps each of pretraining and tuning, one seed")
    print(f"loss on new words          {'  '.join(f'{task:>7}' for task in TASKS)}  weights of the last step")
    for strategy in dict.fromkeys(["ew", *options.strategies]):
        losses, weights = tune(strategy, model.state_dict(), options.steps)
        found = "  ".join(f"{loss:7.3f}" for loss in losses.values())
        print(f"{strategy:25}  {found}  {', '.join(f'{task} {weight:.3g}' for task, weight in weights.items())}")


if __name__ == "__main__":
    main()
