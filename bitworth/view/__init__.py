"""Results folders as a local page: studies side by side, filters, the progress of those that run.

folder.py   a results folder that is looked at again and again     rows.py     what the page shows of a result
page.py     from rows to HTML (page.html.j2, view.css, view.js)    answers.py  what two models answered, side by side
server.py   who may ask, and what for
"""
