"""The paper's study at a scale that two cores can carry: plan, cells, tables, document."""
