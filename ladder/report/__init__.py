"""The pictures of a run and the page that shows them. Matplotlib is imported when one is drawn."""

from ladder.report.write import write_report as write_report
