"""Checks that official readers of others' formats accept what tensorpress writes, and prints the tables of docs/interop.md.

    python main.py PROGRAM LOGITS SHARED WORK EXPERTS [PEER ...]

PROGRAM and LOGITS are ours; EXPERTS is a folder of Mixtral's kind. Each peer is fetched from PyPI; one that is not to be had
is SKIPPED, and why."""
import importlib, shutil, sys

PEERS = ["llama_cpp", "transformers_", "plain", "gptq", "awq_", "bitsandbytes_"]


def main():
    from common import WORK, Skipped, Table
    table = Table()
    for peer in sys.argv[6:] or PEERS:
        shutil.rmtree(WORK, ignore_errors=True)
        WORK.mkdir(parents=True)
        try:
            importlib.import_module(peer).main(table, *sys.argv[5:6])
        except Skipped as why:
            table.skip(peer, why)
    shutil.rmtree(WORK, ignore_errors=True)
    print(f"\n{len(table.failures)} failures, {len(table.skipped)} skipped", *table.failures, *table.skipped, sep="\n")
    sys.exit(1 if table.failures else 0)


main()
