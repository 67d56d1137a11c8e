"""What was measured, on a page: figures and tables, and which of the paper's findings they show."""

from tether.report.grid.page import write_grid_report as write_grid_report
from tether.report.ledger import write_report as write_report
from tether.report.ledger_alone import write_ledger_report as write_ledger_report
