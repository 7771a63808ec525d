"""Can it be trusted? What learned priors and finished runs say about themselves.

- ``prior``: ``check_prior``, a learned density against rows that it has not seen;
  ``comparison`` has the statistics.
- ``exchange``: ``diagnose``, a run of replica exchange; ``exchange_sentences`` says in
  words what its numbers mean.
- ``evidence``: ``log_evidence`` of such a run.
- ``modes``: ``check_modes``, a look for modes that a run has missed.
- ``weights``: numbers about weighted draws, and draws from them.
- ``plots``: figures.
- ``population``, ``finished``: what a starting population says against its run, and how
  a finished run is read.
"""
