"""`tsconvert profile`: how often each neuron fires."""
