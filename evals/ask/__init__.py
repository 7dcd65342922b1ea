"""`ropewalk ask`: one answer from many files, with its sources.

* `command`: the options.
* `request`: what is asked, and the checks that need no model; `contexts`: the files,
  which `splitting` makes shorter.
* `answering`: model, variant and `ropewalk.llm.NBCE` put together.
* `streaming`, `show`: the answer while it is written, and with its sources.
"""
