"""Charts as inline SVG: no script, no network; colours and fonts come from the page's style sheet."""
