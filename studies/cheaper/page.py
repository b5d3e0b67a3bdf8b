def write(cells, part, docs):
    pass
