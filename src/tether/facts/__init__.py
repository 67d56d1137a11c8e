"""Facts: reading them, finding their subjects among tokens, checking them."""

from tether.facts.check import FactCheck as FactCheck
from tether.facts.fact import Fact as Fact
from tether.facts.fact import LocalityPrompt as LocalityPrompt
from tether.facts.fact import PortabilityPrompt as PortabilityPrompt
from tether.facts.formats import FORMATS as FORMATS
from tether.facts.formats import BadRecord as BadRecord
from tether.facts.formats import Format as Format
from tether.facts.formats import FormatFound as FormatFound
from tether.facts.formats import Scan as Scan
from tether.facts.formats import read_facts as read_facts
from tether.facts.formats import read_training_facts as read_training_facts
from tether.facts.formats import scan_facts as scan_facts
from tether.facts.prompt import joint as joint
from tether.facts.tokens import EncodedPrompt as EncodedPrompt
from tether.facts.tokens import encode as encode
from tether.facts.tokens import encode_fact as encode_fact
from tether.facts.tokens import locate as locate
