"""What the machine allows: address space, threads, bfloat16; and what the operating system refuses, in words."""
