"""The commands. Each file imports click at its top and everything else where it is used.

decode, encode, plan, inspect_path      one command each
arguments    the options they share, in sections, with defaults from RunOptions
progress     a bar for people, a line now and then for logs
output       numbers said to people; one JSON object for programs
loading      finding a command without importing it
"""
