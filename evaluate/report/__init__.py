"""`tsconvert report`: one page about a folder of outputs."""
