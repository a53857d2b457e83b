"""KenLM over texts whose words are bytes: seconds and scores, for an ARPA file.

    run_kenlm.py MODEL.arpa TEXTS.json OUT.json

TEXTS holds a list of sentences; OUT gets `seconds` of scoring them, and log10 `scores`.
"""

import json
import sys
import time
from pathlib import Path

import kenlm


def main() -> None:
    model = kenlm.Model(sys.argv[1])
    texts = json.loads(Path(sys.argv[2]).read_text())
    begin = time.thread_time()
    scores = [model.score(text, bos=True, eos=False) for text in texts]
    seconds = time.thread_time() - begin
    Path(sys.argv[3]).write_text(json.dumps({"seconds": seconds, "scores": scores}))


if __name__ == "__main__":
    main()
