"""Trainings on a cluster: Kubeflow Trainer's TrainJobs behind the ``Launcher`` Protocol.

``launcher`` starts, watches and ends them from the train step's pod; ``node`` is what their pods run.
"""
