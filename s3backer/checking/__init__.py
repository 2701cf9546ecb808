"""Reading a whole volume and telling what is wrong with it; repairing what can be repaired.

subject    what is checked: sizes, encoding, who has it mounted
objects    what is wrong with one object
findings   kinds of findings, what they mean for the disk, and the counts beside them
state      the file by which an interrupted check goes on
run        all of it: listing, reading in parallel, telling
repair     what can be done about findings, and doing it
"""
