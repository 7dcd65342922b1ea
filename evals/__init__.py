"""Long-context evaluation of RoPE variants, and the other jobs of the command line.

From Python, with the names that the command line has as options:

    from ropewalk.evals.report import write_report
    from ropewalk.evals.request import Request
    from ropewalk.evals.runner import evaluate

    request = Request(out=Path("runs/x"), model="default", variants=("rope", "rerope"))
    evaluate(request)                       # continues a run that was stopped
    summary, files = write_report(request.out)

    cli.py, commands.py   the command `ropewalk`
    request.py            what is asked for; plan.py: the work that follows from it
    runner.py             carries it out; run_file.py keeps the results, atomically; run_folder.py
                          lets one process at a time write
    batches.py            samples as batches that fit, read in one of three ways, of which
                          parallel_windows.py is one; logits.py computes no more than are scored
    tasks/                perplexity, passkey, nbce: their samples and scores
    report/               tables, pictures, page
    ask/                  `ropewalk ask`: one answer from many files, with its sources
    denoising/            `ropewalk denoise`: trains a denoiser and measures its samples
    default_model/        the bundled models, their text and how they were made

Nothing is imported here, so that the command line answers at once.
"""
