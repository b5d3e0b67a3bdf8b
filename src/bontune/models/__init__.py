"""Language models: loading and saving, adapters, attention, and the distribution that responses are drawn from."""
