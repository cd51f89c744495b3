"""What an answer is worth: verdicts, verifiers, and their registry."""

from verigym.verifiers.verdict import Outcome, Submission, Verdict
from verigym.verifiers.verifier import Verifier, make, register, registered

__all__ = ["Outcome", "Submission", "Verdict", "Verifier", "make", "register", "registered"]
