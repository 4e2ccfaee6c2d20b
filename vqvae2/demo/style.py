"""Style of the page, in addition to Gradio's."""

CSS = """
.gradio-container { max-width: 1200px !important; width: 100% !important; margin: 0 auto !important; }
.status { min-height: 1.5em; }
/* as many columns as fit, and no scroll bar of its own */
.images .grid-wrap { max-height: none !important; min-height: 140px; }
.images .grid-container { grid-template-columns: repeat(auto-fill, minmax(88px, 1fr)) !important; }
/* labels above images, not on them */
.shown > label, .shown .float, .images > label, .images .float { position: static !important; }
"""
