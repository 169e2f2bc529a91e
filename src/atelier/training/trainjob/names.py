"""Names and labels of a training's TrainJobs: the same for every launcher that works on the same thing."""

import hashlib
import re

RUN, KEY, ATTEMPT = "atelier/run", "atelier/key", "atelier/attempt"
"""Labels: the pipeline run, the training (the step's cache key), and which try of it a TrainJob is."""

CAUSE, FINAL, NODE_SECONDS = "atelier/cause", "atelier/final", "atelier/node-seconds"
"""Annotations of a TrainJob whose end a launcher has judged: why, whether that rules out another try, what it used."""

JOBSET = "jobset.sigs.k8s.io/jobset-name"
INDEX = "batch.kubernetes.io/job-completion-index"
"""Labels that Trainer's pods carry: the TrainJob's name, and the node's rank."""

LONGEST = 40
"""A pod of it is called <name>-node-0-<node>-<5 letters>, within 63 letters and with room for thousands of nodes."""


def job_name(run: str, key: str, attempt: int, title: str = "") -> str:
    """A DNS label (RFC 1035) that says what it is and is unique to (run, key, attempt).

    Args:
        run: the pipeline run's id; "" outside one.
        key: the training's.
        attempt: counted from 1.
        title: readable, e.g. the recipe's name; what Kubernetes does not allow in it is replaced.
    """
    digest = hashlib.sha256(f"{run}\0{key}".encode()).hexdigest()[:10]
    end = f"-{digest}-{attempt}"
    start = re.sub(r"[^a-z0-9]+", "-", f"train-{title.lower()}")[: LONGEST - len(end)].strip("-")
    return start + end


def label_value(text: str) -> str:
    """``text`` as a label's value: at most 63 letters, digits, ``-_.``; shortened ones end with a digest."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-_.")
    if plain == text and len(text) <= 63:
        return text
    return f"{plain[:50].rstrip('-_.')}-{hashlib.sha256(text.encode()).hexdigest()[:8]}".lstrip("-")
