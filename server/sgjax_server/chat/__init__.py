"""One generated turn of a conversation, in no API's form; the routes of each API are formats over it."""
