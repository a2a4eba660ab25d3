"""What a model and its server are worth: accuracy, latency, throughput, beside what users would pick instead."""
