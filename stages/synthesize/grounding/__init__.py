"""An answer and its evidence to what the answer says that the evidence does not say."""

from stages.synthesize.grounding.checking import RULES as RULES
from stages.synthesize.grounding.checking import faults as faults
from stages.synthesize.grounding.english import NUMERALS as NUMERALS
from stages.synthesize.grounding.english import stem as stem
from stages.synthesize.grounding.narrowing import trim as trim
from stages.synthesize.grounding.reading import Number as Number
from stages.synthesize.grounding.reading import Reading as Reading
from stages.synthesize.grounding.reading import Sentence as Sentence
from stages.synthesize.grounding.reading import read as read
