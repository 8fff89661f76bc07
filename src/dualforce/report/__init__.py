"""Reports: numbers in, one page of HTML and one file of JSON out."""

from .content import Report
from .writing import check_folder, write_report


__all__ = ["Report", "check_folder", "write_report"]
