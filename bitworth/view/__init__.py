"""Results folders as a local page: studies side by side, filters, the progress of those that run.

folder.py (a results folder that is looked at again and again), watching.py (when), rows.py (what the page shows of a
result), answers.py (what two models answered), page.py (to HTML, with the templates, view.css and view.js), server.py
(who may ask, and what for).
"""
